import jax
import numpy as np
import pytest

from star_jax.graph.model import LinkTask
from star_jax.graph.samplers.fanouts import FanoutConfig, resolve
from star_jax.pipeline.graph_embedding import (
    splits_before,
    splits_until,
    view_of_splits,
    visible_until,
)
from star_jax.pipeline.graph_links import KnownLinks
from star_jax.pipeline.graph_loader import TRAIN_SPLITS, Groups, PairSampler, Sampling
from star_jax.pipeline.graph_model import open_store
from star_jax.pipeline.graph_negatives import UniformNegatives
from star_jax.pipeline.graph_streams import BatchMaker, TaskStream, count_pairs, make_batches
from star_jax.pipeline.hard_negatives import HARD, beside_tables
from star_jax.pipeline.tables.read import PairTable, read_edges, read_pairs
from star_jax.shapes import NO_TIME
from tests.pipeline import graph_market
from tests.pipeline.graph_market import APPLY, SPLITS

TASK = LinkTask("apply", "member", "job")


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    return graph_market.write(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def store(market):
    return open_store(market, "vectors")


@pytest.fixture(scope="module")
def groups(market):
    return Groups(read_pairs(market / "tables", "apply", "train"))


def sampler_of(store, total=(50,)):
    fanouts = dict(resolve(FanoutConfig(total=total), store.meta))
    sampling = Sampling(fanouts=fanouts)
    return PairSampler(store, TASK, (APPLY,), sampling, visible_splits=TRAIN_SPLITS)


def stream_of(store, groups, negatives=None, *, links=None, num_groups=6, num_pairs=18, seed=7):
    return TaskStream(
        groups,
        sampler_of(store),
        negatives,
        num_groups=num_groups,
        num_pairs=num_pairs,
        seed=seed,
        links=links,
    )


@pytest.fixture(scope="module")
def stream(store, groups):
    return stream_of(store, groups)


def test_a_group_is_a_positive_and_its_negatives(market, groups):
    table = read_pairs(market / "tables", "apply", "train")
    assert len(groups) == SPLITS["train"][1]
    assert groups.num_positives.tolist() == [1] * len(groups)
    pairs = groups.take(np.array([5, 2]))
    for group, wanted in enumerate((5, 2)):
        mine, rows = pairs.group == group, table.group == wanted
        assert pairs.label[mine].tolist() == [1, 0, 0]
        assert set(pairs.receiver[mine]) == set(table.receiver[rows])
        assert pairs.time[group] == table.t[rows][0]
        texts = dict(zip(table.receiver[rows], table.receiver_text[rows], strict=True))
        assert [texts[r] for r in pairs.receiver[mine]] == pairs.receiver_text[mine].tolist()
    alone = groups.take(np.array([5, 2]), drawn=False)
    assert alone.label.tolist() == [1, 1]
    assert alone.group.tolist() == [0, 1]


def test_an_epoch_shows_every_group_once_and_the_next_in_another_order(groups, stream):
    steps = len(groups) // stream.num_groups
    assert steps == int(stream.steps_per_epoch)
    shown = [
        sorted(zip(p.sender.tolist(), p.receiver.tolist(), strict=True))
        for p in (groups.take(np.asarray(stream.order[i])) for i in range(2 * steps + 2))
    ]
    seen = np.concatenate([np.asarray(stream.order[i]) for i in range(2 * steps + 2)])
    first = seen[: len(groups)]
    assert sorted(first) == list(range(len(groups)))
    assert shown[0] != shown[steps]


def neighbours(batch, role, seed_type, row):
    """(edge key, node, age) of every sampled neighbour of a seed."""
    subgraph = getattr(batch, role)
    found = []
    for key, table in subgraph.hops[0].items():
        sender, _, receiver = key.split("__")
        assert receiver == seed_type
        for slot in np.flatnonzero(table.mask[row]):
            found.append((key, int(subgraph.nodes[sender].node[table.index[row, slot]])))
    return found


def test_a_group_sees_what_was_there_without_its_own_pairs(market, store, groups, stream):
    edges = read_edges(market / "tables", APPLY)
    batch, num_cut = stream.batch(3, stream.budgets())
    assert num_cut == 0
    pairs = groups.take(np.asarray(stream.order[3]))
    assert batch.mask.sum() == len(pairs.group) == 18
    job_time = np.asarray(store.node_time["job"])
    for group, time in enumerate(pairs.time):
        mine = pairs.group == group
        member = pairs.sender[mine][0]
        visible = (edges.sender == member) & (edges.t < time) & (edges.split == 1)
        visible &= ~np.isin(edges.receiver, pairs.receiver[mine])
        visible &= job_time[edges.receiver] < time
        found = [
            node for key, node in neighbours(batch, "sender", "member", group) if "apply" in key
        ]
        assert sorted(found) == sorted(edges.receiver[visible])
        for row in np.flatnonzero(mine):
            job = pairs.receiver[row]
            visible = (edges.receiver == job) & (edges.t < time) & (edges.split == 1)
            visible &= edges.sender != member
            around = neighbours(batch, "receiver", "job", row)
            found = [node for key, node in around if "apply" in key]
            assert sorted(found) == sorted(edges.sender[visible])
    senders = batch.sender.nodes["member"].node[batch.sender_row]
    receivers = batch.receiver.nodes["job"].node[batch.receiver_row]
    np.testing.assert_array_equal(senders, pairs.sender)
    np.testing.assert_array_equal(receivers, pairs.receiver)
    np.testing.assert_array_equal(batch.label, pairs.label)


def test_a_receiver_may_be_seen_with_its_attributes_alone(store, groups):
    fanouts = dict(resolve(FanoutConfig(total=(50, 4)), store.meta))
    attributes = ("skill__rev_needs__job",)
    sampling = Sampling(fanouts=fanouts, receiver_keys=attributes)
    assert sampling.of("sender") == fanouts
    seen = {key: hops for key, hops in sampling.of("receiver").items() if any(hops)}
    assert seen == {key: (fanouts[key][0], 0) for key in attributes}
    sampler = PairSampler(store, TASK, (APPLY,), sampling, visible_splits=TRAIN_SPLITS)
    stream = TaskStream(groups, sampler, None, num_groups=6, num_pairs=18, seed=7)
    batch, _ = stream.batch(0, stream.budgets())
    assert set(batch.receiver.hops[0]) == set(attributes)
    assert batch.receiver.hops[0][attributes[0]].mask.any()
    assert not batch.receiver.hops[1]
    assert any("apply" in key for key in batch.sender.hops[1])


def test_seeds_show_the_text_of_the_event(store, groups, stream):
    batch, _ = stream.batch(3, stream.budgets())
    pairs = groups.take(np.asarray(stream.order[3]))
    table = batch.sender.nodes["member"]
    shown = table.texts[table.text_row[batch.sender_row]]
    np.testing.assert_array_equal(shown, store.text_vectors["member"][pairs.sender_text])


def test_threads_and_position_do_not_change_a_batch(store, groups):
    def batches():
        stream = stream_of(store, groups)
        return make_batches(BatchMaker({"apply": stream}, {"apply": stream.budgets()}, 2))

    straight, resumed = batches(), batches()
    expected = [next(straight) for _ in range(5)]
    for _ in range(2):
        next(resumed)
    state = resumed.get_state()
    again = batches()
    again.set_state(state)
    for step in range(2, 5):
        jax.tree.map(np.testing.assert_array_equal, next(again), expected[step])
    assert expected[0].mask.shape == (2, 18)
    assert expected[0].tasks["apply"].label.shape == (2, 18)
    first, second = (expected[0].tasks["apply"].sender.nodes["member"].node[i] for i in range(2))
    assert not np.array_equal(first, second)
    assert count_pairs(expected[0])[:2] == (36, 36)


def test_the_rows_of_some_devices_are_those_of_all_and_count_for_all(store, groups):
    stream = stream_of(store, groups)
    budgets = {"apply": stream.budgets()}
    whole = BatchMaker({"apply": stream}, budgets, 3)(4)
    own = BatchMaker({"apply": stream}, budgets, 3, [0, 2])(4)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[[0, 2]]), own, whole)
    counts, all_of_them = count_pairs(own, 2 / 3), count_pairs(whole)
    assert counts[:2] == all_of_them[:2] == (54, 54)
    found = count_pairs(own).figures["neighbours"]
    assert counts.figures["neighbours"] == pytest.approx(1.5 * found)


def test_what_does_not_fit_is_said_once(store, groups, caplog):
    stream = stream_of(store, groups)
    sender, receiver = stream.budgets()
    rows = tuple((name, (sizes[0], min(sizes[1], 8))) for name, sizes in receiver.rows)
    small = receiver.__class__(rows=rows, fanout=receiver.fanout, texts=receiver.texts)
    maker = BatchMaker({"apply": stream}, {"apply": type(stream.budgets())(sender, small)}, 1)
    with caplog.at_level("WARNING"):
        maker(20)
        maker(21)
    said = [r for r in caplog.records if "did not fit" in r.message]
    assert len(said) == 1
    assert "step 20" in said[0].message


def test_fresh_negatives_existed_and_are_no_known_positive(market, store, groups):
    negatives = UniformNegatives(groups, store, TASK, per_positive=3)
    chosen = np.arange(20, 60)
    pairs = negatives(groups.take(chosen, drawn=False), seed=5)
    table = read_pairs(market / "tables", "apply", "train")
    known = set(zip(table.sender[table.label == 1], table.receiver[table.label == 1], strict=True))
    pool = {job for _, job in known}
    created = np.asarray(store.node_time["job"])
    new = pairs.label == 0
    assert new.sum() == 3 * len(chosen)
    assert pairs.group.tolist() == sorted(pairs.group)
    for sender, receiver, group, text in zip(
        pairs.sender[new],
        pairs.receiver[new],
        pairs.group[new],
        pairs.receiver_text[new],
        strict=True,
    ):
        assert (sender, receiver) not in known
        assert receiver in pool
        assert created[receiver] < pairs.time[group]
        assert text == receiver  # Every job has one text, from its creation on.
    again = negatives(groups.take(chosen, drawn=False), seed=5)
    np.testing.assert_array_equal(pairs.receiver, again.receiver)
    other = negatives(groups.take(chosen, drawn=False), seed=6)
    assert not np.array_equal(pairs.receiver, other.receiver)


def mined_of(table, per_positive):
    """Of every positive the receivers that follow its own, as if they had been mined."""
    rows = np.flatnonzero(table.label == 1)
    pairs = [PairTable(*(column[rows] for column in table)) for _ in range(per_positive)]
    parts = [
        each._replace(
            receiver=(each.receiver + 1 + number).astype(np.int32),
            label=np.zeros(len(rows), np.int8),
            negative=np.full(len(rows), HARD),
        )
        for number, each in enumerate(pairs)
    ]
    return PairTable(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def test_mined_negatives_join_the_groups_of_their_positives(market, store):
    table = read_pairs(market / "tables", "apply", "train")
    groups = Groups(beside_tables(table, mined_of(table, 3), 2))
    alone = Groups(table)
    assert groups.sizes.tolist() == (alone.sizes + 2).tolist()
    assert groups.num_mined.tolist() == [2] * len(groups)
    chosen = np.array([5, 2])
    kept = groups.take(chosen, drawn=False)
    own = alone.take(chosen, drawn=False)
    assert kept.label.tolist() == [1, 0, 0, 1, 0, 0]
    expected = [r + more for r in own.receiver for more in (0, 1, 2)]
    assert kept.receiver.tolist() == expected
    assert groups.take(chosen).label.tolist() == [1, 0, 0, 0, 0] * 2
    fresh = UniformNegatives(groups, store, TASK, per_positive=3)(kept, seed=5)
    assert fresh.group.tolist() == [0] * 6 + [1] * 6  # Three for the positive, none for the mined.
    again = UniformNegatives(alone, store, TASK, per_positive=3)(own, seed=5)
    drawn = [*fresh.receiver[3:6], *fresh.receiver[9:]]
    assert drawn == [*again.receiver[1:4], *again.receiver[5:]]


def test_batches_of_fresh_negatives_differ_between_epochs(store, groups):
    negatives = UniformNegatives(groups, store, TASK, per_positive=2)
    stream = stream_of(store, groups, negatives, num_groups=len(groups), num_pairs=3 * len(groups))
    (one, _), (two, _) = stream.pairs(0), stream.pairs(1)

    def drawn(pairs):
        kept = pairs.label == 0
        return set(zip(pairs.sender[kept], pairs.receiver[kept], strict=True))

    assert drawn(one) != drawn(two)


def test_batches_say_who_is_linked_where_the_decoder_asks(market, store, groups):
    assert stream_of(store, groups).batch(0, stream_of(store, groups).budgets())[0].linked is None
    links = KnownLinks(groups.positives())
    stream = stream_of(store, groups, num_pairs=20, links=links)
    batch, _ = stream.batch(2, stream.budgets())
    table = read_pairs(market / "tables", "apply", "train")
    known = set(zip(table.sender[table.label == 1], table.receiver[table.label == 1], strict=True))
    pairs, _ = stream.pairs(2)
    expected = np.zeros((20, 20), bool)
    for row, sender in enumerate(pairs.sender):
        for column, receiver in enumerate(pairs.receiver):
            expected[row, column] = (sender, receiver) in known
    np.testing.assert_array_equal(batch.linked, expected)
    assert expected.sum() > (pairs.label == 1).sum()  # Of other rows, too.


def test_val_sees_train_and_test_sees_both():
    assert splits_before("val") == TRAIN_SPLITS == splits_until("train") == 0b0011
    assert splits_before("test") == splits_until("val") == 0b0111
    assert splits_until("test") == 0b1111


def test_a_split_hides_texts_that_tell_of_its_events(market, store):
    edges = read_edges(market / "tables", APPLY)
    for split in ("val", "test"):
        seen = splits_before(split)
        assert visible_until(store, seen) == edges.t[(seen >> edges.split) & 1 == 1].max() + 1
        view = view_of_splits(store, seen)
        assert view.adjacency is store.adjacency  # No file is opened once more.
        for member in range(graph_market.COUNTS["member"]):
            events = edges.t[(edges.sender == member) & ((seen >> edges.split) & 1 == 1)]
            versions, kept = store.text_versions["member"], view.text_versions["member"]
            start, end = versions.bounds[member], versions.bounds[member + 1]
            expected = [
                text
                for i, text in enumerate(versions.text[start:end])
                if i == 0 or versions.time[start + i] <= max(events, default=NO_TIME)
            ]
            found = kept.text[kept.bounds[member] : kept.bounds[member + 1]]
            assert found.tolist() == expected
    later = edges.t >= edges.t.max() - 10
    assert later.any()
    assert store.text_versions["member"].time.max() == edges.t.max()
    assert view.text_versions["member"].time.max() < edges.t[edges.split == 3].max()
