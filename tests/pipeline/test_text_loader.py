from dataclasses import replace

import jax
import numpy as np
import pytest

from star_jax.config import InputError
from star_jax.pipeline.hard_negatives import with_hard_negatives
from star_jax.pipeline.known_pairs import KnownPairs
from star_jax.pipeline.tables.read import read_meta, read_pairs
from star_jax.pipeline.text_loader import BatchBuilder, BatchShape, count_tokens, make_batches
from star_jax.pipeline.text_pairs import PairRecords, pair_records, with_both_sides
from star_jax.pipeline.text_records import text_records
from star_jax.text.families import TokenLimits
from star_jax.text.tower import TowerConfig, build_tokenizer
from tests.pipeline.text_market import NUM_MEMBERS, write_tables

SHAPE = BatchShape(
    num_groups=6,
    num_negatives=2,
    num_hard_negatives=0,
    num_microbatches=1,
    num_chunks=1,
    num_tables=2,
    pack_length=None,
    num_pools=1,
    num_shards=1,
)


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("market")
    write_tables(workdir / "tables")
    limits = TokenLimits(job=64, profile=64, resume=64, other=64)
    config = TowerConfig(base="random", prompts="none", limits=limits)
    records = text_records(workdir, build_tokenizer(config))
    task = read_meta(workdir / "tables").tasks["apply"]
    pairs = read_pairs(workdir / "tables", "apply", "train")
    return pair_records(pairs, records, sender=task.sender, receiver=task.receiver), records


def known_of(pairs):
    """Their own positives."""
    positive = pairs.label == 1
    return KnownPairs(
        np.stack([pairs.sender[positive], pairs.receiver[positive]], axis=1).astype(int)
    )


def builder(market, shape=SHAPE, pairs=None, seed=3):
    return BatchBuilder(pairs or market[0], market[1], shape, known=known_of(market[0]), seed=seed)


def batches(market, shape=SHAPE, seed=3, **fields):
    return make_batches(builder(market, shape, seed=seed, **fields), shape, seed=seed)


def text_of(batch, slot):
    """Token ids of a text, counted through the slots of the tables of a chunk, then chunks."""
    if batch.texts[0].tokens.ndim == 2:
        batch = batch._replace(texts=jax.tree.map(lambda a: a[None], batch.texts))
    room = [table.lengths[0].size for table in batch.texts]
    chunk, slot = divmod(int(slot), sum(room))
    for table, size in zip(batch.texts, room, strict=True):
        if slot < size:
            row, place = divmod(slot, table.lengths.shape[2])
            lengths = table.lengths[chunk, row]
            start = int(lengths[:place].sum())
            return table.tokens[chunk, row, start : start + lengths[place]].tolist()
        slot -= size
    raise IndexError(slot)


def ends_of(pairs, rows):
    return set(zip(pairs.sender[rows], pairs.receiver[rows], strict=True))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_rows_hold_the_pairs_and_their_texts(market):
    pairs, records = market
    by_key = {(s, r): i for i, (s, r) in enumerate(zip(pairs.sender, pairs.receiver, strict=True))}
    iterator = batches(market)
    for _ in range(8):
        batch = next(iterator)
        for i in np.flatnonzero(batch.mask):
            row = by_key[batch.sender[i], batch.receiver[i]]
            assert batch.label[i] == pairs.label[row]
            for index, column in [
                (batch.document, pairs.document),
                (batch.profile, pairs.profile),
                (batch.resume, pairs.resume),
            ]:
                if column[row] < 0:
                    assert index[i] == -1
                else:
                    expected = records.read([int(column[row])])[0].tolist()
                    assert text_of(batch, index[i]) == expected


def test_a_positive_comes_with_its_negatives(market):
    batch = next(batches(market))
    sender = batch.sender.reshape(SHAPE.num_groups, -1)
    assert (sender == sender[:, :1]).all()
    np.testing.assert_array_equal(
        batch.label.reshape(SHAPE.num_groups, -1), [[1, 0, 0]] * SHAPE.num_groups
    )


def test_a_text_is_in_a_batch_once(market):
    iterator = batches(market)
    for _ in range(8):
        batch = next(iterator)
        rows = np.concatenate([batch.document, batch.profile, batch.resume])
        texts = [tuple(text_of(batch, row)) for row in np.unique(rows[rows >= 0])]
        assert len(set(texts)) == len(texts)
        assert sum(int((table.lengths > 0).sum()) for table in batch.texts) == len(texts)


def test_every_epoch_visits_every_group_once_in_another_order(market):
    num_groups = len(np.unique(market[0].group))
    assert num_groups % 5 == 0
    shape = replace(SHAPE, num_groups=5, num_negatives=3, num_tables=1)
    iterator = batches(market, shape)
    epochs = []
    for _ in range(2):
        drawn = [next(iterator) for _ in range(num_groups // 5)]
        positives = [(b.sender[b.label == 1], b.receiver[b.label == 1]) for b in drawn]
        epochs.append([p for s, r in positives for p in zip(s.tolist(), r.tolist(), strict=True)])
    pairs = market[0]
    positive = pairs.label == 1
    everything = sorted(
        zip(pairs.sender[positive].tolist(), pairs.receiver[positive].tolist(), strict=True)
    )
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1]


def test_the_position_decides_and_threads_change_nothing(market):
    first = batches(market)
    drawn = [next(first) for _ in range(6)]
    second = batches(market)
    for expected in drawn[:3]:
        same(next(second), expected)
    position = second.get_state()
    third = batches(market)
    next(third)
    third.set_state(position)
    for expected in drawn[3:]:
        same(next(third), expected)
    built = builder(market)
    other_seed = next(batches(market, seed=4))
    assert not np.array_equal(other_seed.sender, drawn[0].sender)
    np.testing.assert_array_equal(
        built(1, np.arange(6)).receiver, builder(market)(1, np.arange(6)).receiver
    )


def test_few_shapes_and_no_text_is_cut(market):
    iterator = batches(market)
    shapes = set()
    for _ in range(30):
        batch = next(iterator)
        shapes.add(tuple(table.tokens.shape for table in batch.texts))
        counts = count_tokens(batch)
        assert counts.units == sum(int(t.lengths.sum()) for t in batch.texts) < counts.slots
    assert len(shapes) <= 3
    assert all(rows % 8 == 0 for tables in shapes for rows, _ in tables)


def test_microbatches_are_slices_of_one_shape(market):
    whole = builder(market)
    shape = replace(SHAPE, num_groups=3, num_microbatches=2)
    parts = BatchBuilder(market[0], market[1], shape, known=known_of(market[0]), seed=3)
    groups = np.arange(6)
    a, b = whole(0, groups), parts(0, groups)
    assert b.sender.shape == (2, 9)
    np.testing.assert_array_equal(b.sender.reshape(-1), a.sender)
    np.testing.assert_array_equal(b.receiver.reshape(-1), a.receiver)
    micro = jax.tree.map(lambda array: array[1], b)
    for i in range(9):
        assert text_of(micro, micro.document[i]) == text_of(a, a.document[9 + i])


def test_groups_with_few_negatives_are_padded(market):
    pairs = market[0]
    few = PairRecords(*(column[(pairs.label == 1) | (pairs.group < 3)] for column in pairs))
    batch = builder(market, pairs=few)(0, np.array([0, 5, 1, 6, 7, 8]))
    np.testing.assert_array_equal(
        batch.mask.reshape(6, 3), [[1, 1, 1], [1, 0, 0]] + [[1, 1, 1]] + [[1, 0, 0]] * 3
    )
    assert (batch.sender[~batch.mask] == -1).all()
    assert (batch.document[~batch.mask] == -1).all()


def test_batches_have_room_for_versions_of_texts_within_a_group(market, caplog):
    """Fixed pairs say for each row which version of the profile and of the resume it has."""
    number = np.arange(len(market[0].label), dtype=np.int32) % 10
    pairs = market[0]._replace(document=number, profile=10 + number, resume=20 + number)
    shape = replace(SHAPE, num_tables=1, num_groups=1)
    batch = builder(market, shape, pairs=pairs)(0, np.arange(1))
    assert int(batch.mask.sum()) == shape.group_size
    assert "found no room" not in caplog.text


def test_a_group_takes_its_own_negatives_and_the_mined_ones(market):
    """Explicit negatives of the data are rows of the group already, mined ones come beside them."""
    pairs, _ = market
    positive = np.flatnonzero(pairs.label == 1)
    mined = PairRecords(*(column[np.repeat(positive, 3)[2:]] for column in pairs))  # One has one.
    label, receiver = np.zeros_like(mined.label), mined.receiver + 100  # Told by their numbers.
    mined = mined._replace(label=label, receiver=receiver)
    both = with_hard_negatives(pairs, mined)
    assert both.hard.sum() == len(mined.label)
    shape = replace(SHAPE, num_hard_negatives=2)
    building = builder(market, shape, pairs=PairRecords(*(c[::-1] for c in both)))
    first = int(np.flatnonzero(np.unique(pairs.group) == pairs.group[positive[0]])[0])
    batch = building(0, np.arange(6))
    assert shape.group_size == 5
    size = (6, 5)
    label, mask = batch.label.reshape(size), batch.mask.reshape(size)
    np.testing.assert_array_equal(label[:, 1:], 0)
    assert mask[first].tolist() == [True] * 4 + [False]
    assert mask[np.arange(6) != first].all()
    receiver = np.asarray(batch.receiver).reshape(size)
    assert (receiver[:, :3] < 100).all()
    assert (receiver[:, 3:] >= 100)[mask[:, 3:]].all()
    explicit = ends_of(pairs, pairs.label == 0)
    sender = np.asarray(batch.sender).reshape(size)
    ends = zip(sender[:, 1:3].flat, receiver[:, 1:3].flat, strict=True)
    assert set(ends) <= explicit
    known = ends_of(pairs, pairs.label == 1)
    expected = [[(s, r) in known for s in batch.sender] for r in batch.receiver]
    np.testing.assert_array_equal(batch.known_positive, expected)
    without = builder(market, SHAPE, pairs=both)(0, np.arange(6))
    same(without, builder(market)(0, np.arange(6)))


def test_a_teacher_reaches_the_rows_of_its_pairs(market):
    pairs, _ = market
    assert builder(market)(0, np.arange(6)).teacher is None
    teacher = np.where(pairs.label == 1, pairs.receiver, np.nan).astype(np.float32)
    batch = builder(market, pairs=pairs._replace(teacher=teacher))(0, np.arange(6))
    expected = np.where(batch.label == 1, batch.receiver, np.nan)
    np.testing.assert_array_equal(batch.teacher, expected)


def test_known_positives_are_marked(market):
    pairs, _ = market
    known = set(zip(pairs.sender[pairs.label == 1], pairs.receiver[pairs.label == 1], strict=True))
    batch = next(batches(market))
    for i in range(SHAPE.num_rows):
        for j in range(SHAPE.num_rows):
            expected = (batch.sender[j], batch.receiver[i]) in known
            assert batch.known_positive[i, j] == expected


def test_pairs_without_a_text_on_one_side_go_in_whole_groups(market):
    pairs = market[0]
    document, profile, resume = (column.copy() for column in pairs[4:7])
    first = np.flatnonzero(pairs.group == pairs.group[0])
    second = np.flatnonzero(pairs.group == pairs.group[-1])
    document[first[0]] = -1  # The positive's document.
    document[second[1]] = -1  # A negative's document.
    left = with_both_sides(pairs._replace(document=document, profile=profile, resume=resume))
    gone = set(range(len(pairs.label))) - {*first, second[1]}
    assert len(left.label) == len(gone)
    assert pairs.group[0] not in left.group
    no_profile = pairs._replace(profile=np.full_like(profile, -1))
    kept = with_both_sides(no_profile)
    assert (kept.resume >= 0).all()
    assert 0 < len(kept.label) < len(pairs.label)
    assert len(np.unique(kept.sender)) < NUM_MEMBERS


def test_chunks_hold_what_one_table_holds(market):
    whole = builder(market)(0, np.arange(6))
    chunked = builder(market, replace(SHAPE, num_chunks=3))(0, np.arange(6))
    assert {table.tokens.shape[0] for table in chunked.texts} == {3}
    same(
        chunked._replace(texts=(), document=0, profile=0, resume=0),
        whole._replace(texts=(), document=0, profile=0, resume=0),
    )
    for name in ("document", "profile", "resume"):
        for a, b in zip(getattr(chunked, name), getattr(whole, name), strict=True):
            assert (a < 0) == (b < 0)
            assert a < 0 or text_of(chunked, a) == text_of(whole, b)


def test_packed_rows_hold_the_same_texts_in_one_shape(market):
    shape = replace(SHAPE, num_chunks=2, pack_length=64)
    packer, plain = builder(market, shape), builder(market)
    num_groups = packer.num_groups
    shapes = set()
    for index in range(12):
        groups = np.random.default_rng(index).choice(num_groups, 6, replace=False)
        packed, padded = packer(index, groups), plain(index, groups)
        (table,) = packed.texts
        shapes.add((table.tokens.shape, table.lengths.shape))
        assert table.lengths.sum(axis=-1).max() <= 64
        for name in ("document", "profile", "resume"):
            ours, theirs = getattr(packed, name), getattr(padded, name)
            for a, b in zip(ours[: len(theirs)], theirs, strict=True):
                assert (a < 0) == (b < 0)
                assert a < 0 or text_of(packed, a) == text_of(padded, b)
        counts = count_tokens(packed)
        assert counts.units == count_tokens(padded).units
        num_texts = int((table.lengths > 0).sum())
        assert counts.slots < 0.9 * 64 * num_texts  # As a text a row.
    assert len(shapes) == 1


def test_prompts_are_marked_where_their_texts_lie(tmp_path):
    """One prompt for each kind: pooling without it is pooling of the bare text's own tokens."""
    write_tables(tmp_path / "tables")
    limits = TokenLimits(job=96, profile=96, resume=96, other=96)
    tower = TowerConfig(base="random", prompts="e5-1", limits=limits)
    tokenizer = build_tokenizer(tower)
    records = text_records(tmp_path, tokenizer)
    task = read_meta(tmp_path / "tables").tasks["apply"]
    pairs = pair_records(
        read_pairs(tmp_path / "tables", "apply", "train"),
        records,
        sender=task.sender,
        receiver=task.receiver,
    )
    shape = replace(SHAPE, pack_length=128)
    batch = BatchBuilder(pairs, records, shape, known=known_of(pairs), seed=0)(0, np.arange(6))
    (table,) = batch.texts
    assert table.skipped is not None
    words = {"document": "passage: ", "profile": "query: ", "resume": "query: "}
    for name, before in words.items():
        for slot in getattr(batch, name)[batch.mask]:
            if slot >= 0:
                # A byte a token; the first one of all is <s>.
                assert table.skipped.reshape(-1)[slot] == 1 + len(before)
    assert (table.skipped[table.lengths == 0] == 0).all()


def test_a_batch_of_nearly_all_groups_finds_room(market, caplog):
    """Groups come without repetition, so such a batch has more texts than one drawn at random."""
    shape = replace(SHAPE, num_groups=32, pack_length=64)
    iterator = batches(market, shape)
    for _ in range(20):
        assert next(iterator).mask.reshape(32, 3).any(axis=1).all()
    assert "found no room" not in caplog.text


def test_what_finds_no_room_in_packed_rows_is_left_out_aloud(market, monkeypatch, caplog):
    packer = builder(market, replace(SHAPE, pack_length=96))
    ((table,),) = packer._layouts
    monkeypatch.setattr(packer, "_layouts", ((table._replace(rows=table.rows // 2),),))
    batch = packer(7, np.arange(6))
    kept = batch.mask.reshape(6, 3).any(axis=1)
    assert 0 < kept.sum() < 6
    assert kept.tolist() == sorted(kept.tolist(), reverse=True)
    assert f"batch 7: {6 - kept.sum()} of 6 groups found no room" in caplog.text
    assert (batch.document[~batch.mask] == -1).all()


def test_a_text_longer_than_a_packed_row(market):
    with pytest.raises(InputError, match="pack_length 8 is below the longest text"):
        builder(market, replace(SHAPE, pack_length=8))


def test_pairs_are_padded_to_the_devices_and_pools_are_theirs(market):
    batch = builder(market, replace(SHAPE, num_shards=4, num_pools=4))(0, np.arange(6))
    assert batch.mask.tolist() == [True] * 18 + [False] * 2
    assert batch.pool is not None
    assert batch.pool.tolist() == [pool for pool in range(4) for _ in range(5)]
