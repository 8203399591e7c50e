"""From a kernelspec's mapping to a policy, and every way in which that is refused."""

import os
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_provider.ceilings import Ceilings, Machine, read_ceilings, this_machine
from kernel_provider.errors import (
    CeilingError,
    ConfigError,
    LoopbackError,
    MachineLimitError,
    MountError,
    SandboxError,
    UnknownKeyError,
)
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.values import MIB, parse_size, show

FREE = Ceilings()


def parse(config: dict[str, object], ceilings: Ceilings = FREE) -> KernelPolicy:
    """Parse as the provisioner does."""
    return parse_policy(config, ceilings=ceilings, source="kernelspec mine")


def test_no_setting_at_all_is_the_default_policy() -> None:
    """An empty configuration has the limits that the display name tells."""
    policy = parse({})
    assert policy == KernelPolicy()
    assert (policy.memory, policy.cpus) == (512 * MIB, 0.5)


def test_every_setting_reaches_the_policy_in_its_own_unit(tmp_path: Path) -> None:
    """Sizes become bytes, lists tuples, numbers numbers."""
    given_ = {
        "image": "executor-ml-nlp:latest",
        "memory": "1g",
        "cpus": "1.5",
        "pids": 64,
        "tmp_size": "64 MiB",
        "shm_size": 33554432,
        "workspace": "copy",
        "workspace_size": "16m",
        "output_limit": "32m",
        "output_rate": "2m",
        "message_size": "64m",
        "message_rate": "900",
        "message_parts": 2000,
        "command_size": "1k",
        "handshake_timeout": "2.5",
        "cell_timeout": "90",
        "mounts": {"/models/x": str(tmp_path)},
        "env": {"A": "b"},
        "preload": ["numpy"],
        "startup_timeout": 30,
        "loopback": "insist",
        "gpus": [0, "GPU-a1"],
    }
    assert parse(given_) == KernelPolicy(
        image="executor-ml-nlp:latest",
        memory=1024 * MIB,
        cpus=1.5,
        pids=64,
        tmp_size=64 * MIB,
        shm_size=32 * MIB,
        workspace="copy",
        workspace_size=16 * MIB,
        output_limit=32 * MIB,
        output_rate=2 * MIB,
        message_size=64 * MIB,
        message_rate=900,
        message_parts=2000,
        command_size=1024,
        handshake_timeout=2.5,
        cell_timeout=90.0,
        mounts={"/models/x": str(tmp_path)},
        env={"A": "b"},
        preload=("numpy",),
        startup_timeout=30.0,
        loopback="insist",
        gpus=("0", "GPU-a1"),
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512m", 512 * MIB),
        ("512M", 512 * MIB),
        ("512 MB", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("0.5g", 512 * MIB),
        ("2 GiB", 2048 * MIB),
        ("1t", 1024 * 1024 * MIB),
        ("1048576", MIB),
        ("1024k", MIB),
        (1048576, MIB),
        (" 7b ", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: object, size: int) -> None:
    """Units are powers of 1024, with or without an i, in any case."""
    assert parse_size(text) == size


def test_memory_is_whole_pages() -> None:
    """A control group holds nothing else, and reads back what it holds; ceilings as well."""
    assert parse({"memory": 512 * MIB + 1}).memory == 512 * MIB
    held = read_ceilings({"EXECUTOR_ML_MAX_MEMORY": str(256 * MIB + 4095)}, policy_file="/none")
    assert held.limits["memory"] == 256 * MIB
    small = {"memory": 256 * MIB + 4095, "tmp_size": "64m"}
    assert parse(small, held).memory == 256 * MIB


@pytest.mark.parametrize(
    ("value", "parsed"),
    [(True, True), (False, False), ("true", True), ("False", False), ("insist", "insist")],
)
def test_loopback_is_a_word(value: object, parsed: object) -> None:
    """On the command line and in the environment as in a file."""
    found = parse({"loopback": value}).loopback
    assert (type(found), found) == (type(parsed), parsed)
    assert show("loopback", found) == str(parsed).lower()


@pytest.mark.parametrize(
    ("value", "parsed", "shown"),
    [
        ("all", "all", "all"),
        ("none", 0, "none"),
        (0, 0, "none"),
        ("2", 2, "2"),
        (1.0, 1, "1"),
        (["0", "1"], ("0", "1"), "0 1"),
        (["nvidia.com/gpu=1:0"], ("nvidia.com/gpu=1:0",), "nvidia.com/gpu=1:0"),
    ],
)
def test_gpus_are_all_some_or_these(value: object, parsed: object, shown: str) -> None:
    """And none where nobody asks."""
    found = parse({"gpus": value}).gpus
    assert (type(found), found) == (type(parsed), parsed)
    assert show("gpus", found) == shown
    assert parse({}).gpus == 0


@pytest.mark.parametrize(
    "text", ["", "m", "-1m", "1e9", "512 q", "1_000", "0x10", "1m m", True, None, []]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="write a size"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 38))
def test_a_shown_size_is_never_far_from_what_is_read_back(size: int) -> None:
    """What an error shows can be written into a kernelspec."""
    shown = show("memory", size)
    if not shown.endswith("bytes"):
        assert parse_size(shown) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize(
    ("key", "near"), [("memroy", "memory"), ("cpu", "cpus"), ("mount", "mounts")]
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, near: str) -> None:
    """A typo never means the default (D6)."""
    with pytest.raises(UnknownKeyError, match=f"did you mean '{near}'") as caught:
        parse({key: "1g"})
    assert "kernelspec mine" in str(caught.value)
    assert near in str(caught.value).splitlines()[1]


@pytest.mark.parametrize("key", ["network_mode", "privileged", "cap_add", "user", "volumes"])
def test_no_key_loosens_the_hardening(key: str) -> None:
    """What Docker calls its options is unknown here."""
    with pytest.raises(UnknownKeyError):
        parse({key: "host"})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"memory": "lots"}, "write a size"),
        ({"memory": "64m"}, "at least 96 MB"),
        ({"memory": -1}, "at least 96 MB"),
        ({"memory": None}, "write a size"),
        ({"memory": "128m"}, "are part of memory .128 MB. and leave none of it"),
        ({"tmp_size": "600m"}, r"600 MB. and shm_size .64 MB. are part of memory .512 MB"),
        ({"shm_size": "1g"}, "are part of memory"),
        ({"cpus": 0}, "at least 0.01"),
        ({"cpus": "nan"}, "write a number"),
        ({"cpus": "inf"}, "write a number"),
        ({"cpus": True}, "write a number"),
        ({"cpus": "many"}, "write a number such as 2 or 0.5"),
        ({"pids": 12.5}, "write a whole number"),
        ({"pids": "inf"}, "write a number"),
        ({"pids": 10**400}, "write a number"),
        ({"pids": 8}, "at least 32"),
        ({"tmp_size": "0"}, "at least 1 MB"),
        ({"startup_timeout": 0}, "at least 1"),
        ({"startup_timeout": "inf"}, "write a number"),
        ({"image": ""}, "write a text"),
        ({"image": 7}, "write a text"),
        ({"env": ["A=1"]}, "write an object"),
        ({"env": {"A": 1}}, "write an object"),
        ({"env": {"A": "b\0c"}}, "write an object"),
        ({"env": {"A=B": "c"}}, "name of a variable"),
        ({"env": {"LD_PRELOAD": "/data/x.so"}}, "watches over the kernel"),
        ({"env": {"GCONV_PATH": "/data"}}, "watches over the kernel"),
        ({"env": {"": "c"}}, "name of a variable"),
        ({"preload": "numpy"}, "write a list"),
        ({"preload": [1]}, "write a text"),
        ({"preload": ["a,b"]}, "'a,b' is no name of a module"),
        ({"preload": ["a-b.c"]}, "is no name of a module"),
        ({"mounts": ["/models"]}, "write an object"),
        ({"loopback": "maybe"}, 'write true, false or "insist"'),
        ({"loopback": 1}, "write true, false"),
        ({"gpus": -1}, 'write "all", how many, or a list of devices'),
        ({"gpus": "some"}, 'write "all"'),
        ({"gpus": []}, 'write "all"'),
        ({"gpus": [True]}, 'write "all"'),
        ({"gpus": ["0,1"]}, 'write "all"'),
        ({"gpus": ["vendor.com/net=eth0"]}, 'write "all"'),
        ({"gpus": ["nvidia.com/gpu="]}, 'write "all"'),
        ({"gpus": True}, 'write "all"'),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(
    config: dict[str, object], reason: str
) -> None:
    """The error names key, value and why, and its remedy names the kernelspec."""
    with pytest.raises(ConfigError, match=reason) as caught:
        parse(config)
    (key,) = config
    assert caught.value.data["key"] == key
    assert str(caught.value).splitlines()[1] == f"Fix: change {key} in kernelspec mine"


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(sorted(KernelPolicy.__dataclass_fields__)), _JSON)
def test_any_json_gives_a_policy_or_one_of_our_errors(key: str, value: object) -> None:
    """Whatever a kernelspec holds, nobody meets a traceback."""
    try:
        policy = parse({key: value})
    except SandboxError:
        return
    assert isinstance(policy, KernelPolicy)


# --- ceilings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("memory", "2g", 1024 * MIB),
        ("cpus", 2, 1.0),
        ("pids", 500, 200),
        ("tmp_size", "200m", 150 * MIB),
        ("shm_size", "200m", 150 * MIB),
        ("loopback", True, False),
        ("loopback", "insist", True),
        ("gpus", 1, 0),
        ("gpus", ["0", "1"], 1),
        ("gpus", "all", 8),
        ("gpus", ["all"], 8),
        ("gpus", ["0", "nvidia.com/gpu=all"], 8),
    ],
)
def test_a_limit_above_its_ceiling_names_both_and_who_set_it(
    key: str, value: object, limit: float
) -> None:
    """The error names the wish, the ceiling and where it comes from."""
    ceilings = Ceilings(limits={key: limit}, sources={key: "/etc/executor-ml/policy.toml"})
    with pytest.raises(CeilingError) as caught:
        parse({"memory": "1g", key: value}, ceilings)
    text = str(caught.value)
    assert show(key, limit) in text
    assert "/etc/executor-ml/policy.toml" in text
    assert key in text


def test_the_ceiling_itself_is_allowed() -> None:
    """A ceiling is the highest value, not the first forbidden one."""
    assert parse({"memory": "1g"}, Ceilings(limits={"memory": 1024 * MIB})).memory == 1024 * MIB


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [("loopback", True, "insist"), ("gpus", ["0"], 1), ("gpus", "all", "all")],
)
def test_permissions_have_ceilings_as_well(key: str, value: object, limit: str | int) -> None:
    """What is insisted on is more than what is just allowed, and all is all."""
    assert parse({key: value}, Ceilings(limits={key: limit})) == parse({key: value})


def test_a_default_above_a_ceiling_is_refused_as_well() -> None:
    """A kernelspec that says nothing is held under the ceiling like any other."""
    with pytest.raises(CeilingError, match="memory = 512 MB is above the ceiling of 256 MB"):
        parse({}, Ceilings(limits={"memory": 256 * MIB}, sources={"memory": "X"}))


@pytest.mark.parametrize("said", ["none", None, 0, "0", 0.0])
def test_cells_have_no_limit_where_none_is_said(said: object) -> None:
    """By a word, by JSON's null, or by no seconds at all."""
    assert parse({"cell_timeout": said}) == KernelPolicy()
    assert show("cell_timeout", KernelPolicy().cell_timeout) == "none"


CELL_CEILING = {"EXECUTOR_ML_MAX_CELL_TIMEOUT": "60"}


@pytest.mark.parametrize(
    ("said", "environ", "seconds"),
    [
        ({}, {}, 60.0),
        ({"cell_timeout": 60}, {}, 60.0),
        ({"cell_timeout": 5}, {}, 5.0),
        ({}, {"EXECUTOR_ML_DEFAULT_CELL_TIMEOUT": "20"}, 20.0),
        ({"cell_timeout": "none"}, {"EXECUTOR_ML_MAX_CELL_TIMEOUT": "none"}, None),
    ],
)
def test_a_ceiling_on_cells_is_their_limit_unless_another_is_said(
    said: dict[str, object], environ: dict[str, str], seconds: float | None
) -> None:
    """By default they have none, which is above any: every kernelspec would be refused."""
    ceilings = read_ceilings({**CELL_CEILING, **environ}, policy_file="/none")
    assert parse(said, ceilings).cell_timeout == seconds


@pytest.mark.parametrize(
    ("said", "shown"), [("none", "none"), (0, "none"), (61, "61"), ("1e3", "1000")]
)
def test_no_limit_is_above_any_ceiling_on_cells(said: object, shown: str) -> None:
    """Whoever writes it is told."""
    ceilings = read_ceilings(CELL_CEILING, policy_file="/none")
    with pytest.raises(CeilingError) as caught:
        parse({"cell_timeout": said}, ceilings)
    told = f"cell_timeout = {shown} is above the ceiling of 60 set in EXECUTOR_ML_MAX_CELL_TIMEOUT"
    assert told in str(caught.value)
    by_hand = replace(ceilings, defaults={})
    with pytest.raises(CeilingError, match="cell_timeout = none is above the ceiling of 60"):
        parse({}, by_hand)


def test_only_listed_images_start_where_there_is_a_list() -> None:
    """Another image is refused, and the error lists what is allowed."""
    ceilings = Ceilings(images=("executor-ml:latest", "executor-ml-nlp:latest"))
    assert parse({}, ceilings).image == "executor-ml:latest"
    with pytest.raises(ConfigError, match="executor-ml:latest, executor-ml-nlp:latest"):
        parse({"image": "debian"}, ceilings)


@pytest.mark.parametrize("value", ["", "Copy", True, None, 1, ["copy"], "mount"])
def test_a_workspace_is_one_of_two_words(value: object) -> None:
    """Nothing is guessed."""
    with pytest.raises(ConfigError, match="write none or copy"):
        parse({"workspace": value})


def test_a_workspace_fits_into_tmp() -> None:
    """Where the copy lies; what is not copied takes no room."""
    with pytest.raises(ConfigError, match="whose tmp_size is 32 MB") as caught:
        parse({"workspace": "copy", "tmp_size": "32m"})
    assert caught.value.data["key"] == "workspace_size"
    assert parse({"tmp_size": "32m"}).workspace == "none"
    fitting: dict[str, object] = {"workspace": "copy", "workspace_size": "32m", "tmp_size": "32m"}
    assert parse(fitting).workspace_size == 32 * MIB


def test_an_administrator_forbids_workspaces_or_holds_their_size(tmp_path: Path) -> None:
    """By one word of the file, or by a ceiling; kernels without one start all the same."""
    file = tmp_path / "policy.toml"
    file.write_text('[ceilings]\nworkspace_size = "16m"\n')
    ceilings = read_ceilings({}, policy_file=str(file))
    assert parse({}, ceilings).workspace == "none"
    with pytest.raises(CeilingError, match="workspace_size = 64 MB is above the ceiling"):
        parse({"workspace": "copy"}, ceilings)
    file.write_text('[ceilings]\nworkspace = "none"\n')
    ceilings = read_ceilings({}, policy_file=str(file))
    assert parse({}, ceilings).workspace == "none"
    with pytest.raises(CeilingError, match="workspace = copy is above the ceiling of none"):
        parse({"workspace": "copy"}, ceilings)
    file.write_text('[ceilings]\nworkspace = "copy"\n')
    ceilings = read_ceilings({}, policy_file=str(file))
    assert parse({"workspace": "copy"}, ceilings).workspace == "copy"
    variable = {"EXECUTOR_ML_MAX_WORKSPACE_SIZE": "8m"}
    with pytest.raises(CeilingError, match="EXECUTOR_ML_MAX_WORKSPACE_SIZE"):
        parse({"workspace": "copy"}, read_ceilings(variable, policy_file=str(file)))


def test_no_file_and_no_variable_is_no_ceiling(tmp_path: Path) -> None:
    """Nothing is held where nobody asked for it."""
    environ = {"EXECUTOR_ML_MODELS": "/models"}
    found = read_ceilings(environ, policy_file=str(tmp_path / "none.toml"))
    assert found == Ceilings(machine=this_machine(), registry="/models")


@pytest.mark.parametrize(
    ("variable", "limit", "source"),
    [("1g", 1024 * MIB, "EXECUTOR_ML_MAX_MEMORY"), ("4g", 2048 * MIB, "the file")],
)
def test_of_file_and_environment_the_smaller_ceiling_counts(
    tmp_path: Path, variable: str, limit: int, source: str
) -> None:
    """Neither can raise what the other holds."""
    file = tmp_path / "policy.toml"
    file.write_text('[ceilings]\nmemory = "2g"\n')
    found = read_ceilings({"EXECUTOR_ML_MAX_MEMORY": variable}, policy_file=str(file))
    assert found.limits == {"memory": limit}
    assert found.sources == {"memory": str(file) if source == "the file" else source}


@pytest.mark.parametrize(
    "text",
    [
        "ceiling = 1",
        "[ceilings]\nmemroy = 1",
        "[ceilings]\nimage = 1",
        '[ceilings]\nmemory = "lots"',
        "[ceilings]\ncpus = nan",
        "ceilings = 5",
        "allowed_images = 'x'",
        "mount_sources = [1]",
        "[ceilings]\nworkspace = false",
        "not toml at all",
        "\xff",
    ],
)
def test_a_policy_file_that_is_not_understood_stops_every_kernel(tmp_path: Path, text: str) -> None:
    """A ceiling that is misspelt is not no ceiling."""
    file = tmp_path / "policy.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"policy\.toml"):
        read_ceilings({}, policy_file=str(file))


def test_a_policy_file_that_cannot_be_read_stops_every_kernel(tmp_path: Path) -> None:
    """It was meant as a ceiling."""
    with pytest.raises(ConfigError, match="directory"):
        read_ceilings({}, policy_file=str(tmp_path))


@pytest.mark.parametrize("value", ["", "lots", "-", "nan"])
def test_a_ceiling_of_the_environment_that_means_nothing_stops_every_kernel(
    value: str,
) -> None:
    """An empty variable is a mistake, not infinity."""
    with pytest.raises(ConfigError, match="EXECUTOR_ML_MAX_CPUS"):
        read_ceilings({"EXECUTOR_ML_MAX_CPUS": value}, policy_file="/nonexistent")


# --- defaults and Jupyter's configuration ---------------------------------------------------


def collected(tmp_path: Path, text: str, **traits: object) -> Ceilings:
    """Ceilings of a file and of a server's configuration."""
    file = tmp_path / "policy.toml"
    file.write_text(text)
    said = {name: (f"c.SandboxProvisioner.{name}", value) for name, value in traits.items()}
    return read_ceilings({}, policy_file=str(file), traits=said)


def test_defaults_are_for_what_a_kernelspec_does_not_set(tmp_path: Path) -> None:
    """The kernelspec's own go before; of the administrator's, the server's."""
    text = '[defaults]\nmemory = "1g"\npids = 64\ncpus = 1'
    ceilings = collected(tmp_path, text, defaults={"pids": 99})
    policy = parse({"cpus": 0.25}, ceilings)
    assert (policy.memory, policy.pids, policy.cpus) == (1024 * MIB, 99, 0.25)


def test_variables_set_defaults_where_no_configuration_is_read(tmp_path: Path) -> None:
    """Above the file's, below the server's; a wrong one is blamed on its variable."""
    file = tmp_path / "policy.toml"
    file.write_text("[defaults]\npids = 64\ncpus = 1", encoding="utf-8")
    said = {"EXECUTOR_ML_DEFAULT_PIDS": "77", "EXECUTOR_ML_DEFAULT_MEMORY": "1g"}
    traits = {"defaults": ("c", {"memory": "2g"})}
    ceilings = read_ceilings(said, policy_file=str(file), traits=traits)
    policy = parse({"cpus": 0.25}, replace(ceilings, machine=None))
    assert (policy.memory, policy.pids, policy.cpus) == (2048 * MIB, 77, 0.25)
    for name, value, why in (
        ("MEMROY", "1g", "there is no setting 'memroy'; did you mean 'memory'?"),
        ("PIDS", "", "pids = '' is not possible: write a number"),
        ("MEMORY", "8m", "a kernel needs at least"),
        ("MOUNTS", "/", "write an object of texts"),
    ):
        variable = f"EXECUTOR_ML_DEFAULT_{name}"
        held = read_ceilings({variable: value}, policy_file="/none")
        with pytest.raises(ConfigError, match=f"{variable}: .*{re.escape(why)}"):
            parse({}, held)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[defaults]\nmemory = "8m"', "memory = '8 MB' is not possible: a kernel needs at least"),
        ("[defaults]\nmemroy = 1", "there is no setting 'memroy'; did you mean 'memory'?"),
        ('[defaults]\nmemory = "2g"\n[ceilings]\nmemory = "1g"', "above the ceiling of 1 GB"),
        ('[defaults]\ntmp_size = "1g"', "tmp_size = '1 GB' is not possible"),
        ('[defaults]\nimage = "x"', "allows these images: y"),
        ("defaults = 5", "defaults = 5 is not possible: write a table"),
    ],
)
def test_a_wrong_default_is_blamed_on_who_set_it(tmp_path: Path, text: str, said: str) -> None:
    """Not on the kernelspec, which says nothing."""
    with pytest.raises(ConfigError) as caught:
        parse({}, collected(tmp_path, text, allowed_images=["y", KernelPolicy().image]))
    assert str(caught.value).startswith(f"{tmp_path / 'policy.toml'}: ")
    assert said in str(caught.value)


def test_traits_are_ceilings_like_any_other(tmp_path: Path) -> None:
    """The smaller counts, whoever says it; lists allow what all of them allow."""
    inner = tmp_path / "models" / "ours"
    inner.mkdir(parents=True)
    text = (
        f'allowed_images = ["a", "b"]\nmount_sources = ["{tmp_path}/models"]\n'
        '[ceilings]\nmemory = "1g"\ncpus = 2\nloopback = true'
    )
    found = collected(
        tmp_path,
        text,
        max_memory="2g",
        max_cpus=1,
        max_loopback=False,
        allowed_images=["b", "c"],
        mount_sources=[str(inner), "/srv"],
    )
    assert found.limits == {"memory": 1024 * MIB, "cpus": 1, "loopback": False}
    assert found.sources["memory"] == str(tmp_path / "policy.toml")
    assert found.sources["cpus"] == "c.SandboxProvisioner.max_cpus"
    assert found.images == ("b",)
    assert found.mount_sources == (str(inner),)
    both = f"{tmp_path / 'policy.toml'} and c.SandboxProvisioner."
    assert found.sources["allowed_images"] == f"{both}allowed_images"
    assert found.sources["mount_sources"] == f"{both}mount_sources"


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"max_memory": "lots"}, "c.SandboxProvisioner.max_memory: memory = 'lots' is not"),
        ({"max_memroy": "1g"}, "no setting 'max_memroy'; did you mean 'max_memory'?"),
        ({"max_memory": "1m"}, "no kernel could start: it needs at least 96 MB"),
        ({"max_cpus": -1}, "no kernel could start"),
        ({"max_pids": 3}, "no kernel could start: it needs at least 32"),
        ({"max_loopback": "yes"}, 'write true, false or "insist"'),
        ({"allowed_images": "x"}, "write a list of texts"),
        ({"mount_sources": ["models"]}, "the path must be absolute"),
    ],
)
def test_a_ceiling_that_cannot_be_stops_every_kernel(
    tmp_path: Path, traits: dict[str, object], said: str
) -> None:
    """It names what is wrong, and where."""
    with pytest.raises(ConfigError) as caught:
        collected(tmp_path, "", **traits)
    assert said in str(caught.value)
    assert "c.SandboxProvisioner." in str(caught.value)
    assert "\nFix: " in str(caught.value)


# --- the machine --------------------------------------------------------------------------

SMALL = Ceilings(machine=Machine(cpus=2, memory=4 * 1024 * MIB - 5000))


@pytest.mark.parametrize(
    ("key", "value", "said", "most"),
    [
        ("cpus", 2.5, "cpus = 2.5", "2 processors"),
        ("memory", "4g", "memory = 4 GB", "3.75 GB"),
    ],
)
def test_a_limit_above_the_machine_is_refused(
    key: str, value: object, said: str, most: str
) -> None:
    """It would hold nothing back; the remedy is what there is."""
    with pytest.raises(MachineLimitError) as caught:
        parse({key: value}, SMALL)
    first, second = str(caught.value).splitlines()
    assert first == f"kernelspec mine: {said} is more than this machine has: {most}"
    assert second == f"Fix: ask for at most {most}"


def test_all_of_the_machine_is_allowed() -> None:
    """What it has is the highest value; who has not looked refuses nothing."""
    assert parse({"cpus": 2, "memory": 4 * 1024 * MIB - 5000}, SMALL).cpus == 2
    assert parse({"cpus": 999, "memory": "900t"}).cpus == 999


OLD = Ceilings(machine=Machine(cpus=2, memory=1 << 40, cgroup=1))


def test_loopback_is_refused_where_sockets_escape_the_limit() -> None:
    """On control groups of version 1, unless insisted on; the remedy says so."""
    with pytest.raises(LoopbackError) as caught:
        parse({"loopback": True}, OLD)
    first, second = str(caught.value).splitlines()
    assert first.startswith("kernelspec mine: loopback = true is not possible: on this machine")
    assert "outside of the memory limit" in first
    assert second == 'Fix: set loopback to "insist" in kernelspec mine to have it all the same'
    assert parse({"loopback": "insist"}, OLD).loopback == "insist"
    assert parse({"loopback": True}, SMALL).loopback is True
    assert parse({}, OLD).loopback is False


def test_this_machine_is_the_kernels_own() -> None:
    """As /proc tells, which is what an engine tells as well."""
    told = Path("/proc/meminfo").read_text(encoding="ascii").split()
    assert told[0] == "MemTotal:"
    assert this_machine().memory == int(told[1]) * 1024
    assert this_machine().cpus >= 1


# --- mounts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/tmp",
        "/models",
        "/models/",
        "/models/a/b",
        "/models/../etc",
        "/models/..",
        "/models//x",
        "/models/./x",
        "models/x",
        "/etc/x",
        "/data/x/",
        "",
    ],
)
def test_mounts_go_nowhere_but_below_models_and_data(target: str, tmp_path: Path) -> None:
    """No mount covers a part of the system, by whatever spelling."""
    with pytest.raises(ConfigError, match="directly below /models or /data"):
        parse({"mounts": {target: str(tmp_path)}})


def test_a_mount_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The engine would make an empty folder, as root."""
    with pytest.raises(MountError, match=r"missing.*No such file"):
        parse({"mounts": {"/data/x": f"{tmp_path}/missing"}})


def test_a_mount_must_be_a_folder_by_absolute_path(tmp_path: Path) -> None:
    """Files and sockets are refused, and paths that depend on where one stands."""
    (tmp_path / "file").touch(mode=0o755)
    with pytest.raises(MountError, match="not a folder"):
        parse({"mounts": {"/data/x": f"{tmp_path}/file"}})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
        with pytest.raises(MountError, match="not a folder"):
            parse({"mounts": {"/data/x": f"{tmp_path}/s"}})
    with pytest.raises(MountError, match="must be absolute"):
        parse({"mounts": {"/data/x": "relative"}})


def test_mounts_come_from_the_administrators_sources_only(tmp_path: Path) -> None:
    """A folder beside an allowed one, or a link out of one, is not inside of it."""
    for name in ("allowed", "allowed-not"):
        (tmp_path / name / "sub").mkdir(parents=True)
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "allowed-not")
    ceilings = Ceilings(mount_sources=(str(tmp_path / "allowed"),))
    for path in ("allowed", "allowed/sub"):
        assert parse({"mounts": {"/data/x": str(tmp_path / path)}}, ceilings).mounts
    for path in ("allowed-not", "allowed/link", "allowed/../allowed-not", "."):
        with pytest.raises(MountError, match="policy does not allow"):
            parse({"mounts": {"/data/x": f"{tmp_path}/{path}"}}, ceilings)


def test_a_source_of_the_administrators_may_be_a_link(tmp_path: Path) -> None:
    """It means what it points to."""
    (tmp_path / "disk" / "models").mkdir(parents=True)
    (tmp_path / "srv").symlink_to(tmp_path / "disk")
    ceilings = Ceilings(mount_sources=(str(tmp_path / "srv"),))
    assert parse({"mounts": {"/models/x": f"{tmp_path}/srv/models"}}, ceilings).mounts


def test_an_empty_list_of_sources_allows_no_mount(tmp_path: Path) -> None:
    """A list is a list, also when nothing is on it."""
    with pytest.raises(MountError, match="policy does not allow"):
        parse({"mounts": {"/data/x": str(tmp_path)}}, Ceilings(mount_sources=()))


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_mount_that_this_user_cannot_read_is_refused(tmp_path: Path) -> None:
    """The engine is root and could: it must not lend that to a notebook."""
    folder = tmp_path / "closed" / "inner"
    folder.mkdir(parents=True)
    folder.parent.chmod(0)
    try:
        with pytest.raises(MountError, match=r"cannot read|Permission"):
            parse({"mounts": {"/data/x": str(folder)}})
    finally:
        folder.parent.chmod(0o700)
