"""Models in real sandboxes: found by their ids, offline, and nobody can change them."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import kernel, run
from legacy_weights import legacy_weights
from sandboxes import look, session_of, value, written
from small_models import ASK, gpt2, hub_cache

from kernel_provider import cli
from kernel_provider.models.add import Request, add
from kernel_provider.models.errors import UnknownModelError
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import Registry, digest_of
from kernel_provider.steps import Note

pytestmark = pytest.mark.container

ID = "test-lab/tiny-gpt2"
Pair = tuple[KernelManager, BlockingKernelClient]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with two models, one of which the kernels are given."""
    folder = tmp_path_factory.mktemp("models")
    registry = Registry(folder / "registry")
    for number, model in enumerate((ID, "test-lab/secret")):
        found = from_path(model, gpt2(folder / f"model-{number}", seed=number))
        add(registry, Request(model=model, revision=f"v{number}"), found, Note())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXECUTOR_ML_MODELS", str(registry.root))
        yield registry


@pytest.fixture(scope="module")
def pair(image: str, registry: Registry) -> Iterator[Pair]:
    """A kernel with the model."""
    assert image
    assert registry.list()
    with kernel({"models": [ID]}) as pair:
        yield pair


@pytest.fixture
def client(pair: Pair) -> BlockingKernelClient:
    """A client of that kernel."""
    return pair[1]


TALK = f"""
import os
from transformers import pipeline
chat = pipeline('text-generation', model={ID!r})
said = chat('the cat sat', max_new_tokens=5, do_sample=False)[0]['generated_text']
assert said.startswith('the cat sat') and len(said) > len('the cat sat'), said
assert os.getuid() > 60000 and os.getgid() > 60000, (os.getuid(), os.getgid())
"""


def test_a_pipeline_finds_it_by_its_id(pair: Pair, engine: docker.DockerClient) -> None:
    """Offline, without a warning, as a notebook from elsewhere has it; written is in /tmp only."""
    km, client = pair
    container = look(session_of(km), engine).container
    before = written(container, engine)
    outcome = run(client, TALK, timeout=300)
    assert outcome.status == "ok", outcome.error
    assert "offline" not in outcome.stderr.lower()
    assert "cache" not in outcome.stderr.lower()
    assert written(container, engine) == before


def test_a_cache_of_the_host_can_be_mounted(image: str, tmp_path: Path) -> None:
    """Hugging Face's own, for models that are in no registry; it stays as it is."""
    assert image
    cache = hub_cache(tmp_path / "hub", ID)
    before = contents(cache)
    with kernel({"mounts": {"/models/hub": str(cache)}, "cpus": 1}) as (_, client):
        outcome = run(client, TALK, timeout=300)
        assert outcome.status == "ok", outcome.error
    assert contents(cache) == before


MAP = """
import mmap
file = open('/models/tiny-gpt2/model.safetensors', 'rb')
mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
len(bytes(mapped))
"""


def shares(km: KernelManager, engine: docker.DockerClient) -> tuple[int, int]:
    """Of the model's weights, KB that a kernel has, and KB that count as its own."""
    found = [(0, 0)]
    for pid in look(session_of(km), engine).group.processes():
        text = Path(f"/proc/{pid}/smaps").read_text()
        for part in re.split(r"^(?=[0-9a-f]+-)", text, flags=re.MULTILINE):
            if "model.safetensors" in part.partition("\n")[0]:
                counted = dict(re.findall(r"^(Rss|Pss): +(\d+) kB", part, re.MULTILINE))
                found.append((int(counted["Rss"]), int(counted["Pss"])))
    return max(found)


def test_kernels_share_a_models_pages(pair: Pair, engine: docker.DockerClient) -> None:
    """A second one has it at no cost: each is charged for half."""
    km, client = pair
    with kernel({"models": [ID]}) as (other_km, other):
        sizes = [value(each, MAP) for each in (client, other)]
        assert sizes[0] == sizes[1]
        found = [shares(each, engine) for each in (km, other_km)]
        assert all(resident >= sizes[0] // 1024 for resident, _ in found)
        assert all(0 < own <= resident / 2 + 4 for resident, own in found)


def test_a_path_a_commit_and_a_revision_find_the_same(client: BlockingKernelClient) -> None:
    """For code that asks in other ways."""
    code = f"""
from transformers import AutoModelForCausalLM
from huggingface_hub import snapshot_download, hf_hub_download
def total(*args, **more):
    model = AutoModelForCausalLM.from_pretrained(*args, **more)
    return sum(p.sum().item() for p in model.parameters())
folder = snapshot_download({ID!r})
hf_hub_download({ID!r}, 'config.json')
totals = {{total({ID!r}), total('/models/tiny-gpt2'), total({ID!r}, revision='v0'), total(folder)}}
len(totals)
"""
    assert value(client, code) == 1


def test_nothing_else_of_the_registry_is_there(client: BlockingKernelClient) -> None:
    """Neither other models nor names of the host's folders."""
    code = """
import os, pathlib
seen = sorted(str(p) for p in pathlib.Path('/models').rglob('*') if not p.is_file())
lines = open('/proc/self/mountinfo').read()
(seen, sorted(os.listdir('/models/hub')), 'secret' in lines)
"""
    folders, hub, told = value(client, code)
    assert hub == [f"models--{ID.replace('/', '--')}", "version.txt"]
    assert not [path for path in folders if "secret" in path or "blobs" in path]
    assert not told


ATTACKS = """
import os, shutil
open('/tmp/mine', 'w').close()
def tried(*calls):
    refused = []
    for call in calls:
        try:
            call()
        except OSError as error:
            refused.append(error.errno)
    return refused
done = []
for root in ('/models/tiny-gpt2', '/models/hub/models--test-lab--tiny-gpt2'):
    for where, folders, files in os.walk(root):
        for name in files:
            path = f'{where}/{name}'
            done += tried(
                lambda: open(path, 'r+b'),
                lambda: open(path, 'ab'),
                lambda: os.truncate(path, 0),
                lambda: os.unlink(path),
                lambda: os.rename(path, path + '.old'),
                lambda: os.replace('/tmp/mine', path),
                lambda: os.chmod(path, 0o777),
                lambda: os.chown(path, os.getuid(), os.getgid()),
                lambda: os.utime(path),
                lambda: os.link(path, path + '.link'),
                lambda: os.setxattr(path, 'user.x', b'y'),
                lambda: open(f'/proc/self/fd/{os.open(path, os.O_RDONLY)}', 'wb'),
            )
        done += tried(
            lambda: open(f'{where}/new', 'w'),
            lambda: os.mkdir(f'{where}/sub'),
            lambda: os.symlink('/etc/passwd', f'{where}/link'),
            lambda: os.mkfifo(f'{where}/pipe'),
            lambda: os.chmod(where, 0o777),
            lambda: os.rename(where, where + '-old'),
            lambda: os.rmdir(where),
        )
    done += tried(lambda: shutil.rmtree(root), lambda: os.rename(root, root + '-old'))
done += tried(lambda: os.unlink('/models/hub/version.txt'), lambda: os.mkdir('/models/x'))
(len(done), sorted(set(done)))
"""


def contents(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything about every file below a folder, but when it was read."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        digest = digest_of(path) if path.is_file() else ""
        numbers = (facts.st_mode, facts.st_ino, facts.st_uid, facts.st_nlink, facts.st_mtime_ns)
        found[str(path)] = (digest, *numbers, facts.st_ctime_ns, tuple(os.listxattr(path)))
    return found


def test_it_cannot_be_changed_from_inside(client: BlockingKernelClient, registry: Registry) -> None:
    """Whatever is tried fails, and the host's files are bit for bit what they were."""
    before = contents(registry.root)
    files = 2 * len(registry.find(ID).files) + 3
    number, errors = value(client, ATTACKS)
    folders = 1 + 4
    assert number == 12 * files + 7 * folders + 2 * 2 + 2, errors
    assert contents(registry.root) == before


def test_an_unknown_model_starts_no_kernel(image: str, registry: Registry) -> None:
    """The start fails with what a person can do."""
    assert image
    assert registry.list()
    words = f"did you mean '{ID}@v0'"
    with pytest.raises(UnknownModelError, match=words), kernel({"models": ["tiny-gtp2"]}):
        pass


WITHOUT_FLAGS = """
import os
for name in [name for name in os.environ if 'OFFLINE' in name]:
    del os.environ[name]
os.environ['HF_HUB_OFFLINE'] = '0'
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = False
"""


@pytest.mark.parametrize("setup", ["", WITHOUT_FLAGS], ids=["offline", "flags unset"])
def test_a_model_that_is_not_there_is_told_at_once(
    setup: str, image: str, registry: Registry
) -> None:
    """Which are there, and how to add one; a notebook cannot make it wait for a network."""
    assert image
    assert registry.list()
    calls = {
        "pipeline('text-generation', model='distilgpt2')": "distilgpt2",
        "AutoModel.from_pretrained('org/other')": "org/other",
        "AutoTokenizer.from_pretrained('org/other', local_files_only=False)": "org/other",
    }
    with kernel({"models": [ID], "cpus": 1}) as (_, client):
        assert run(client, setup).status == "ok"
        for call, wanted in calls.items():
            said, took = value(client, ASK.format(call=call))
            assert said.startswith(f"NotMountedError: The model {wanted} is not in this sandbox")
            assert f"Mounted are: {ID}." in said
            assert f"executor-ml models add {wanted} FOLDER" in said
            assert took < 2
        other = f"AutoModel.from_pretrained({ID!r}, revision='v9')"
        said, took = value(client, ASK.format(call=other))
        assert "is in this sandbox, but not its revision v9" in said
        assert took < 2
        assert value(client, f"type(AutoModel.from_pretrained({ID!r})).__name__") == "GPT2Model"


def test_pickles_are_converted_where_they_can_do_nothing(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their code runs in a sandbox, their tensors come out as safetensors."""
    assert image
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "registry"))
    mark = Path("/tmp/executor-ml-test-pickle-ran")
    folder = legacy_weights(tmp_path / "m", mark=str(mark))
    assert cli.main(["models", "add", "old", str(folder)]) == 65
    assert "add --convert" in capsys.readouterr().err
    assert cli.main(["models", "add", "old", str(folder), "--dtype", "bf16"]) == 0
    assert not mark.exists()
    registry = Registry(tmp_path / "registry")
    entry = registry.find("old")
    assert (entry.parameters, entry.dtype) == (12, "BF16")
    assert "converted by executor-ml" in entry.source
    snapshot = registry.snapshot(entry)
    assert {path.name for path in snapshot.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((snapshot / "config.json").read_text()) == {"torch_dtype": "bfloat16"}
    assert (snapshot / "model.safetensors").read_bytes().endswith(b"\x80\x3f" * 12)


def test_weights_that_cannot_be_converted_are_told(
    image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch's words, and nothing is added."""
    assert image
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path / "registry"))
    (tmp_path / "old.pth").write_bytes(b"no weights at all")
    words = ["models", "add", "old", str(tmp_path / "old.pth"), "--convert"]
    assert cli.main(words) == 65
    assert "converting it in a sandbox failed: UnpicklingError" in capsys.readouterr().err
    left = {path.name for path in (tmp_path / "registry").rglob("*")}
    assert left == {".lock", "blobs", "entries", "views"}
