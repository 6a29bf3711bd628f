from star_jax.pipeline.report import markup
from star_jax.pipeline.report.drawing import inline_svg


def test_what_data_say_never_becomes_markup():
    evil = '<img src="x" onerror=1>&'
    parts = [
        markup.paragraph(evil),
        markup.table(evil, [evil], [[evil], [markup.Cell(evil, "best")]], note=evil),
        markup.cards([(evil, evil, evil)]),
        markup.details(evil, markup.code(evil)),
        markup.figure("", evil, [markup.LegendEntry(evil, "#000000")]),
        markup.page(evil, evil, "", [(evil, markup.section(evil))]),
        inline_svg("name", evil, (2.0, 2.0), lambda canvas: canvas.text(0.5, 0.5, evil) and None),
    ]
    for part in parts:
        assert "<img" not in part
        assert "&lt;img" in part


def test_two_drawings_share_no_id():
    def draw(canvas):
        canvas.subplots().plot([0, 1], [1, 0], marker="o")

    one, other = (inline_svg(name, "t", (3.0, 2.0), draw) for name in ("one", "other"))
    assert other.replace("other-", "one-").replace('"other', '"one') != other
    ids = [{word for word in svg.split() if word.startswith("id=")} for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert one == inline_svg("one", "t", (3.0, 2.0), draw)  # The same input, the same bytes.
