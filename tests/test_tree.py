"""The Merkle tree of RFC 6962: known answers, every proof of small trees, and what no proof may show."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.merkle import leaf_hash
from eventstore.transparency import tree
from eventstore.transparency.tree import EMPTY_ROOT, Frontier, Node, of_leaves

# Certificate Transparency's test data: eight leaves, and the roots of the trees of the first 1 to 8 of them.
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(bytes.fromhex(text)) for text in INPUTS]
MANY = [leaf_hash(b"%d" % number) for number in range(64)]


def hexes(hashes: list[bytes]) -> list[str]:
    return [each.hex() for each in hashes]


def by_definition(leaves: list[bytes]) -> bytes:
    """The root as RFC 6962 defines it, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    left = max(2**power for power in range(64) if 2**power < len(leaves))
    return sha256(b"\1" + by_definition(leaves[:left]) + by_definition(leaves[left:])).digest()


def test_roots_are_those_of_the_known_test_data() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert [tree.root(LEAVES[:size]).hex() for size in range(1, 9)] == ROOTS


def test_proofs_are_those_of_the_known_test_data() -> None:
    of = of_leaves(LEAVES)

    assert hexes(tree.inclusion_proof(5, 8, of)) == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert hexes(tree.inclusion_proof(2, 3, of)) == [ROOTS[1]]
    assert hexes(tree.consistency_proof(6, 8, of)) == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert hexes(tree.consistency_proof(2, 5, of)) == [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]


def test_the_root_of_every_size_is_that_of_the_definition() -> None:
    frontier = Frontier()
    for size in range(65):
        assert frontier.size == size
        assert frontier.root() == tree.root(MANY[:size]) == by_definition(MANY[:size])
        frontier.extend(MANY[size : size + 1])


def test_a_frontier_goes_on_from_the_edge_of_any_size() -> None:
    for size in range(65):
        edge = [of_leaves(MANY)(node) for node in tree.Range(0, size).nodes()]
        frontier = Frontier(size, edge)
        frontier.extend(MANY[size:])
        assert frontier.root() == tree.root(MANY)


def test_a_frontier_refuses_an_edge_of_another_size() -> None:
    with pytest.raises(ValueError, match="has 2 hashes"):
        Frontier(5, MANY[:3])


def test_every_leaf_of_every_size_up_to_64_is_proven_and_no_other() -> None:
    of = of_leaves(MANY)
    for size in range(1, 65):
        root = tree.root(MANY[:size])
        for index in range(size):
            proof = tree.inclusion_proof(index, size, of)
            assert tree.verify_inclusion(MANY[index], index, size, proof, root)
            assert not tree.verify_inclusion(MANY[(index + 1) % 64], index, size, proof, root)
            assert not any(
                tree.verify_inclusion(MANY[index], wrong, size, proof, root) for wrong in range(size) if wrong != index
            )


def test_every_pair_of_sizes_up_to_64_is_proven_consistent() -> None:
    of = of_leaves(MANY)
    roots = [tree.root(MANY[:size]) for size in range(65)]
    for new in range(65):
        for old in range(new + 1):
            proof = tree.consistency_proof(old, new, of)
            assert tree.verify_consistency(old, new, proof, roots[old], roots[new])
            assert not tree.verify_consistency(old, new, [*proof, MANY[0]], roots[old], roots[new])
            assert not tree.verify_consistency(old, new, proof, MANY[63], roots[new])
            assert not tree.verify_consistency(old, new, proof, roots[old], MANY[63]) or old == 0


def test_a_tree_that_was_changed_is_not_consistent_whatever_is_shown() -> None:
    forged = [MANY[63], *MANY[1:]]
    for new in range(2, 65):
        for old in range(1, new):
            proof = tree.consistency_proof(old, new, of_leaves(forged))
            roots = (tree.root(MANY[:old]), tree.root(forged[:new]))
            assert not tree.verify_consistency(old, new, proof, *roots)


@settings(max_examples=100)
@given(st.data())
def test_a_proof_with_anything_changed_shows_nothing(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 64))
    index = data.draw(st.integers(0, size - 1))
    root = tree.root(MANY[:size])
    proof = tree.inclusion_proof(index, size, of_leaves(MANY))
    place = data.draw(st.integers(0, len(proof) - 1))
    wrong = data.draw(
        st.sampled_from(
            [
                [*proof[:place], bytes(32), *proof[place + 1 :]],
                proof[:place] + proof[place + 1 :],
                [*proof[:place], root, *proof[place:]],
                [*proof, root],
            ]
        )
    )
    assert not tree.verify_inclusion(MANY[index], index, size, wrong, root)


@pytest.mark.parametrize(("index", "size"), [(-1, 1), (0, 0), (1, 1), (8, 8)])
def test_a_leaf_that_is_not_there_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="has no leaf"):
        tree.inclusion_proof(index, size, of_leaves(MANY))
    assert not tree.verify_inclusion(MANY[0], index, size, [], MANY[0])


def test_a_smaller_tree_does_not_begin_with_a_larger_one() -> None:
    with pytest.raises(ValueError, match="does not begin"):
        tree.consistency_proof(3, 2, of_leaves(MANY))
    assert not tree.verify_consistency(3, 2, [], MANY[0], MANY[0])


def test_proofs_of_a_huge_tree_ask_for_few_subtrees() -> None:
    size, asked = 10**12 + 12345, list[Node]()

    def subtree(node: Node) -> bytes:
        asked.append(node)
        return sha256(repr(node).encode()).digest()

    tree.inclusion_proof(10**11, size, subtree)
    tree.consistency_proof(10**11, size, subtree)

    assert 50 < len(asked) < 200
    assert all((node.index + 1) << node.level <= size for node in asked)
