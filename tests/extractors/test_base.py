from dataclasses import dataclass

from scatterdp.extractors.base import fingerprint


@dataclass(frozen=True, kw_only=True)
class Config:
    a: int = 1
    b: str = "x"


def test_fingerprints_are_stable_across_versions_of_this_package():
    # A frozen value: should it change, every cache that exists is orphaned.
    found = fingerprint("A", Config(), (1, 8, 8), preprocessing={"mean": (0.5,)}, versions={"library": "1"})
    assert found == "3d23f0321895b39fdbdb45f421cc1a0e08057be0011ac8a74a8634e706091aa3"


def test_every_part_counts_and_the_order_of_mappings_does_not():
    def make(name="A", config=None, shape=(1, 8, 8), preprocessing=None, versions=None):
        return fingerprint(
            name,
            config or Config(),
            shape,
            preprocessing={"mean": 0, "std": 1} if preprocessing is None else preprocessing,
            versions=versions or {"library": "1"},
        )

    parts = [
        make(),
        make(name="B"),
        make(config=Config(a=2)),
        make(shape=(1, 8, 9)),
        make(preprocessing={}),
        make(versions={"library": "2"}),
    ]
    assert len(set(parts)) == 6
    assert make(preprocessing={"std": 1, "mean": 0}) == make()
