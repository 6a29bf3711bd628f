"""What bench/scaling.py says of how steps grow."""

import pytest

from bench import scaling
from star_jax.pipeline.planning.programs import Traffic


def test_exponents_are_slopes_of_logarithms():
    sizes = [1, 10, 100, 1000]
    assert scaling.exponent(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert scaling.exponent(sizes, [7, 7, 7, 7]) == pytest.approx(0.0)
    # Of a least square: one point off pulls by its distance from the middle.
    assert scaling.exponent([1, 10, 100], [1, 10, 1000]) == pytest.approx(1.5)


def test_the_smallest_row_is_compiled(tmp_path, capsys):
    folder = scaling.base_folder(str(tmp_path))
    one, two = (scaling.text_step(folder, n, 2, 16, "export") for n in (1, 2))
    assert (one.units, two.units) == (2 * 16, 2 * 16)
    assert one.program.flops > 1.5 * two.program.flops > 0
    wrong = scaling.print_devices("A title", [(1, one), (2, two)])
    assert wrong == []
    assert "| text, export | 2 | 32 |" in capsys.readouterr().out
    sent = two.program._replace(collectives={"all-gather": Traffic(1, 5)})
    (complaint,) = scaling.print_devices("A title", [(1, one._replace(program=sent))])
    assert "text, export on one device sends 5 bytes" in complaint
