"""Model files that were made to do harm, or have come to it: safe loading refuses them and does nothing else."""

import base64
import io
import json
import os
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections import Counter, OrderedDict

import cloudpickle
import numpy as np
import pytest
import torch as th

from sb3_diffusion import DiffPPO, DiffSAC, DiffWPO, UnsafeModelError, load_safe
from sb3_diffusion.saving.archive import check_pickle
from tests.test_safe_load import make, nothing_unpickled, saved

SETTINGS = "sb3_diffusion.json"

# What was tried, how often, and what came of it; printed at the end with -s
TRIED: dict[str, Counter] = {}


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def models():
    trained = {cls.__name__: make(cls).learn(18) for cls in (DiffSAC, DiffWPO, DiffPPO)}
    trained["sgd"] = make(DiffSAC, ent_coef=0.1, policy_kwargs=dict(net_arch=[4], optimizer_class=th.optim.SGD)).learn(15)
    return trained


@pytest.fixture(scope="module")
def files(models):
    return {name: saved(model).getvalue() for name, model in models.items()}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Where a payload would leave its mark, in the working directory, which stays empty."""
    monkeypatch.chdir(tmp_path)
    with nothing_unpickled():
        yield tmp_path / "marker"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    for name, results in TRIED.items():
        print(f"| {name} | {results.total()} | {results['refused']} | {results['loaded']} |")


def entries_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(entries, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            archive.writestr(name, content)
    return file.getvalue()


def refused(what, content, match=None):
    results = TRIED.setdefault(what, Counter())
    try:
        load_safe(io.BytesIO(content))
    except UnsafeModelError as error:
        results["refused"] += 1
        assert match is None or match in str(error), str(error)
        assert len(str(error)) < 3000
    else:
        results["loaded"] += 1
        pytest.fail("it was loaded")


def with_entry(content, name, entry):
    return zipped({**entries_of(content), name: entry})


def with_settings(content, change):
    entries = entries_of(content)
    settings = json.loads(entries[SETTINGS])
    change(settings)
    return zipped({**entries, SETTINGS: json.dumps(settings)})


def with_tensors(content, name, change):
    """The file with one .pth entry changed."""
    entries = entries_of(content)
    tensors = th.load(io.BytesIO(entries[name]), weights_only=True)
    changed = change(tensors)
    file = io.BytesIO()
    th.save(tensors if changed is None else changed, file)
    return zipped({**entries, name: file.getvalue()})


def with_pickle(content, name, data, **more):
    """The file with another data.pkl in one .pth entry."""
    entries = entries_of(content)
    inner = entries_of(entries[name])
    return zipped({**entries, name: zipped({**inner, "archive/data.pkl": data, **more})})


class TestPickles:
    def test_in_the_settings_of_stable_baselines3(self, files, marker):
        # They are not read at all, so the model loads without a trace
        payload = base64.b64encode(cloudpickle.dumps(Payload(marker))).decode()
        data = json.dumps({"policy_class": {":type:": "x", ":serialized:": payload}})
        TRIED.setdefault("code in a pickle, never read", Counter())["loaded"] += 1
        assert load_safe(io.BytesIO(with_entry(files["DiffSAC"], "data", data))).predict(np.zeros(3))

    @pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
    def test_in_another_entry(self, files, marker, dumps):
        for name in ("payload.pkl", "extra.pth", "data.pkl", "policy", "policy.pth.pkl", "a/b.pth"):
            content = with_entry(files["DiffSAC"], name, dumps(Payload(marker)))
            problem = "is not a complete zip" if name == "extra.pth" else "is none that a model file has"
            refused("code in a pickle", content, problem)

    def test_state_dicts_of_nothing(self, files):
        entries = entries_of(files["DiffSAC"])
        refused("an entry more", with_entry(files["DiffSAC"], "extra.pth", entries["policy.pth"]), "has tensors of")

    def test_settings_of_weights_that_take_memory(self, files):
        for name, shape in (("trained_settings", (5, 10**10)), ("trained_values", (10**10,))):

            def grow(state, key=f"actor.schedule.{name}", shape=shape):
                state[key] = th.full((1,), 2.0**-10).expand(shape)

            refused("an expanded tensor", with_tensors(files["DiffSAC"], "policy.pth", grow), None)

    def test_in_place_of_tensors(self, files, marker):
        for name in [name for name in entries_of(files["DiffSAC"]) if name.endswith(".pth")]:
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                payload = pickle.dumps(Payload(marker), protocol)
                refused("code in a pickle", with_entry(files["DiffSAC"], name, payload), "is not a complete zip archive")
                refused("code in a pickle", with_pickle(files["DiffSAC"], name, payload), name)
            for zip_format in (False, True):
                file = io.BytesIO()
                th.save({"weight": Payload(marker)}, file, _use_new_zipfile_serialization=zip_format)
                refused("code in a pickle", with_entry(files["DiffSAC"], name, file.getvalue()), name)

    def test_in_the_plain_settings(self, files, marker):
        text = base64.b64encode(cloudpickle.dumps(Payload(marker))).decode()
        for form in (
            {":type:": "x", ":serialized:": text},
            {":serialized:": text},
            {"pickle": text},
            {"object": ["Payload", {"marker": str(marker)}]},
            {"object": ["os.mkdir", {"path": str(marker)}]},
            {"class": "os.mkdir"},
            {"class": "builtins.eval"},
            {"class": "torch.nn.Linear"},
            {"array": ["|O8", [1], text]},
            {"array": ["O", [1], text]},
            {"array": [text, [1], text]},
            text,
        ):
            for name in ("learning_rate", "policy_class", "observation_space", "policy_kwargs", "action_noise"):
                refused(
                    "code or classes in the settings",
                    with_settings(files["DiffSAC"], lambda s, n=name, f=form: s["attributes"].update({n: f})),
                    name,
                )

    def test_names_that_shadow_methods(self, files, marker):
        for name in (
            "predict",
            "_setup_model",
            "__class__",
            "__dict__",
            "set_parameters",
            "env",
            "policy",
            "actor",
            "replay_buffer",
            "rollout_buffer",
            "clone_coef",
            "ent_coef_tensor",
            "__deepcopy__",
            "_logger",
            "device",
            "x" * 10**5,
        ):
            refused(
                "unknown settings",
                with_settings(files["DiffSAC"], lambda s, n=name: s["attributes"].update({n: 1})),
                "which no DiffSAC has",
            )
            refused("unknown settings", with_settings(files["DiffSAC"], lambda s, n=name: s.update({n: 1})))


def raw_zip(records, comment=b""):
    """A zip archive from (name, content, changes of the central record)."""
    body, central = bytearray(), bytearray()
    for name, content, changes in records:
        record = dict(
            flags=0, method=0, crc=zipfile.crc32(content), size=len(content), full=len(content), attr=0, at=len(body)
        )
        record.update(changes)
        local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, record["flags"], record["method"], 0, 0, record["crc"], record["size"],
                            record["full"], len(name), 0)  # fmt: skip
        central += struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, record["flags"], record["method"], 0, 0,
                               record["crc"], record["size"], record["full"], len(name), 0, 0, 0, 0, record["attr"],
                               record["at"])  # fmt: skip
        central += name
        body += local + name + content
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(records), len(records), len(central), len(body), len(comment))
    return bytes(body + central + end + comment)


class TestArchives:
    def test_bombs(self, files, marker):
        zeros = bytes(5 * 2**20)
        entries = entries_of(files["DiffSAC"])
        for name in entries:
            content = zipped({**entries, name: zeros}, zipfile.ZIP_DEFLATED)
            refused("zip bombs", content, "is compressed")
        for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            refused("zip bombs", zipped(entries, compression), "is compressed")
        inner = entries_of(entries["policy.pth"])
        bomb = zipped({**inner, "archive/data/0": zeros}, zipfile.ZIP_DEFLATED)
        refused("zip bombs", zipped({**entries, "policy.pth": bomb}), "is compressed")

    def test_crafted_records(self, files, marker):
        entries = [(name.encode(), content) for name, content in entries_of(files["DiffSAC"]).items()]
        plain = [(name, content, {}) for name, content in entries]
        load_safe(io.BytesIO(raw_zip(plain)))
        for changes, match in (
            (dict(at=0), "shares bytes"),
            (dict(size=2**31, full=2**31), ""),
            (dict(size=10, full=2**31), "is compressed"),
            (dict(full=0), "is compressed"),
            (dict(flags=1), "is encrypted"),
            (dict(attr=0o120777 << 16), "is not a plain file"),
            (dict(attr=0o040755 << 16), "is not a plain file"),
            (dict(attr=0o010644 << 16), "is not a plain file"),
            (dict(method=99), "is compressed"),
            (dict(crc=0), "Bad CRC"),
            (dict(at=2**31), ""),
            (dict(size=0xFFFFFFFF, full=0xFFFFFFFF), ""),
        ):
            for index in range(1, len(plain)):
                crafted = list(plain)
                crafted[index] = (*entries[index], changes)
                refused("crafted zip records", raw_zip(crafted), match)
        # Overlapping: all entries are the first one's bytes
        refused("zip bombs", raw_zip([(name, entries[0][1], dict(at=0)) for name, _ in entries]))
        refused("zip bombs", raw_zip([(b"data", bytes(1000), dict(at=0))] * 60_000))

    def test_names(self, files, marker):
        for name in (
            *("../policy.pth", "/tmp/policy.pth", "..\\policy.pth", "C:\\policy.pth", "a/../policy.pth", "./policy.pth"),
            *(
                "policy.pth/",
                "sb3_diffusion.json/",
                "policy.pth\0.txt",
                "POLICY.PTH",
                "__pycache__/x.pyc",
                "\x1b[2J",
                "d" * 60_000,
            ),
            *("tensors.pth", "actor.pth", "env.pth"),
        ):
            refused("foreign and traversing names", with_entry(files["DiffSAC"], name, b""))
            for inner in (f"archive/{name}", name):
                entries = entries_of(files["DiffSAC"])
                policy = zipped({**entries_of(entries["policy.pth"]), inner: b""})
                refused("foreign and traversing names", zipped({**entries, "policy.pth": policy}))

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_entries_that_are_missing_or_there_twice(self, files, marker):
        for content in files.values():
            entries = entries_of(content)
            for name in entries:
                if name in (SETTINGS, *[name for name in entries if name.endswith(".pth")]):
                    refused("missing entries", zipped({key: value for key, value in entries.items() if key != name}))
                refused("entries that are there twice", zipped([*entries.items(), (name, entries[name])]), "is there twice")
                refused("empty entries", zipped({**entries, name: b""})) if name.endswith((".pth", ".json")) else None
        entries, other = entries_of(files["DiffSAC"]), entries_of(files["DiffWPO"])
        refused("missing entries", zipped({**other, **entries}), "has tensors of")
        refused("missing entries", zipped({}))

    def test_truncated(self, files, marker):
        generator = random.Random(0)
        for name in ("DiffSAC", "DiffWPO", "DiffPPO"):
            for length in [0, 1, 21, 22, *generator.sample(range(len(files[name])), 50)]:
                refused("truncated", files[name][:length])

    def test_random_bytes(self, files, marker):
        generator = random.Random(1)
        for _ in range(100):
            noise = generator.randbytes(generator.randrange(3000))
            refused("random bytes", noise)
            refused("random bytes", b"PK\3\4" + noise + b"PK\1\2" + noise[:50] + files["DiffSAC"][-22:])
            name = generator.choice([SETTINGS, "policy.pth", "pytorch_variables.pth", "critic.optimizer.pth"])
            refused("random bytes", with_entry(files["DiffSAC"], name, noise))

    def test_flipped_bytes(self, models, files, marker):
        generator = random.Random(2)
        results = TRIED.setdefault("one byte changed", Counter())
        for _ in range(240):
            name = generator.choice(["DiffSAC", "DiffWPO", "DiffPPO"])
            content = bytearray(files[name])
            # Half of them in the directory, where the checksums do not reach
            at = generator.randrange(len(content)) if generator.random() < 0.5 else -1 - generator.randrange(900)
            content[at] ^= generator.randrange(1, 256)
            try:
                loaded = load_safe(io.BytesIO(content))
            except UnsafeModelError:
                results["refused"] += 1
                continue
            results["loaded"] += 1
            for key, state in models[name].get_parameters().items():
                if "optimizer" not in key:
                    assert all(th.equal(value, loaded.get_parameters()[key][name]) for name, value in state.items())

    @pytest.mark.filterwarnings("ignore:invalid escape sequence")
    def test_flipped_bytes_with_right_checksums(self, files, marker):
        generator = random.Random(3)
        results = TRIED.setdefault("one byte of an entry changed, checksums right", Counter())
        for _ in range(100):
            entries = entries_of(files[generator.choice(["DiffSAC", "DiffWPO", "DiffPPO"])])
            name = generator.choice([SETTINGS, *[name for name in entries if name.endswith(".pth")]])
            inner = entries_of(entries[name]) if name.endswith(".pth") else {name: entries[name]}
            part = "archive/data.pkl" if generator.random() < 0.7 and name.endswith(".pth") else generator.choice(list(inner))
            changed = bytearray(inner[part])
            if not changed:
                continue
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
            inner[part] = bytes(changed)
            entries[name] = zipped(inner) if name.endswith(".pth") else inner[name]
            try:
                loaded = load_safe(io.BytesIO(zipped(entries)))
            except UnsafeModelError:
                results["refused"] += 1
                continue
            results["loaded"] += 1
            assert all(th.isfinite(value).all() for value in loaded.policy.state_dict().values())


class TestTensors:
    def test_pickles_that_never_end_or_take_all_memory(self, files, marker):
        head, tail = b"\x80\x02", b"."
        rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
        storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0%sX\x03\0\0\0cpuJ%stQ"
        # Lists of twice the list before, tuples of twice the tuple before
        nested = b"]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(40))
        nested_tuple = b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(40))
        for data in (
            head + nested + tail,
            head + nested + b")R" + tail,
            head + b"}" + nested_tuple + b"K\x01s" + tail,
            head + b"}" + b"q\0X\1\0\0\0ah\0s" + tail,
            head + b"(" * 100_000 + tail,
            head + b"]" * 100_000 + b"a" * 99_999 + tail,
            head + b"X\xff\xff\xff\x7fabc" + tail,
            head + b"\x8a\xff" + b"\xff" * 255 + tail,
            head + b"\x8b\xff\xff\xff\x7f" + tail,
            head + b"ctorch\nFloatTensor\n\x8a\x06" + b"\xff" * 5 + b"\x00\x85R" + tail,
            head + b"cbuiltins\nbytearray\n\x8a\x05" + b"\xff" * 4 + b"\x00\x85R" + tail,
            head + b"c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0zlib\x86R" + tail,
            head + b"ctorch\ndevice\nX\4\0\0\0meta\x85R" + tail,
            head + rebuild + storage % (b"0", struct.pack("<i", 24)) + b"K\0J\0\0\0\x7f\x85K\0\x85\x89}tR" + tail,
            head + rebuild + storage % (b"0", struct.pack("<i", 10**9)) + b"K\0K\x01\x85K\x01\x85\x89}tR" + tail,
            head + rebuild + storage % (b"9", struct.pack("<i", 24)) + b"K\0K\x01\x85K\x01\x85\x89}tR" + tail,
            head + rebuild + storage % (b"0", struct.pack("<i", -1)) + b"K\0K\x01\x85K\x01\x85\x89}tR" + tail,
            b"", tail, head, head + b"N" + tail, head + b"K\x01" + tail, head + b"R" + tail, head + b"0" + tail, 
            b"N" * 5 * 2**20,
        ):  # fmt: skip
            for name in ("actor.optimizer.pth", "pytorch_variables.pth"):
                refused("pickles of tensors that take memory or time, or are none", with_pickle(files["DiffSAC"], name, data))

    def test_random_operations(self, marker):
        generator = random.Random(4)
        operations = b"}](tq\0h\0NK\1X\1\0\0\0a)\x85\x86\x87RQbsuae\x88\x89"
        for _ in range(2000):
            data = b"\x80\x02" + bytes(generator.choices(operations, k=generator.randrange(60))) + b"."
            try:
                check_pickle(data)
            except Exception as error:
                assert not isinstance(error, (MemoryError, RecursionError, SystemError))

    def test_what_torch_save_writes_is_followed(self):
        module = th.nn.Sequential(th.nn.Linear(2, 3), th.nn.BatchNorm1d(3))
        for state in (module.state_dict(), {}, OrderedDict(), {"a": th.zeros(2, 3).T, "b": th.tensor(1), "c": th.zeros(0)}):
            file = io.BytesIO()
            th.save(state, file)
            inner = entries_of(file.getvalue())
            check_pickle(inner["archive/data.pkl"])

    @pytest.mark.parametrize(
        "value",
        [
            *(th.zeros(3), th.zeros(8, 3, 1), th.zeros(8, 3, dtype=th.float64), th.zeros(8, 3, dtype=th.int32)),
            *(
                th.full((8, 3), float("nan")),
                th.full((8, 3), float("inf")),
                th.zeros(1).expand(8, 3),
                th.zeros(8, 3).to_sparse(),
            ),
            *(
                th.empty(8, 3, device="meta"),
                th.quantize_per_tensor(th.zeros(8, 3), 1.0, 0, th.qint8),
                th.zeros(8, 3, dtype=th.cfloat),
            ),
            *(th.zeros(1).expand(10**6, 10**6), th.nn.Parameter(th.zeros(8, 3)), th.nested.nested_tensor([th.zeros(3)] * 8)),
            *(None, 1.0, "text", [0.0] * 24, {"a": th.zeros(8, 3)}, b"bytes", {1, 2}, np.float64(1)),
        ],
        ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
    )
    def test_weights_of_another_kind(self, files, marker, value):
        name = "actor.score_network.encoder.0.weight"
        content = with_tensors(files["DiffSAC"], "policy.pth", lambda state: state.update({name: value}))
        refused("tensors of another shape, type or kind", content, "policy")

    def test_state_dicts_of_another_shape(self, files, marker):
        def drop(state):
            state.pop(next(iter(state)))

        for change in (
            drop,
            lambda state: state.update(extra=th.zeros(1)),
            lambda state: state.update({3: th.zeros(1)}),
            lambda state: {},
            lambda state: [1, 2],
            lambda state: th.zeros(3),
            lambda state: None if state.clear() else {"policy": 1},
        ):
            for name in ("policy.pth", "pytorch_variables.pth", "critic.optimizer.pth", "ent_coef_optimizer.pth"):
                refused("tensors of another shape, type or kind", with_tensors(files["DiffSAC"], name, change), name[:-4])
        for value in (th.zeros(2), th.zeros(()), th.full((1,), float("nan")), th.zeros(1, dtype=th.float64), 1.0, None):
            content = with_tensors(files["DiffSAC"], "pytorch_variables.pth", lambda v, x=value: v.update(log_ent_coef=x))
            refused("tensors of another shape, type or kind", content, "log_ent_coef")

    def test_a_state_dict_whose_attributes_are_set(self, files, marker):
        def shadow(state, attribute):
            setattr(state, attribute, {"": 1})

        for attribute in ("copy", "pop", "__class_getitem__", "_metadata2"):
            content = with_tensors(files["DiffSAC"], "policy.pth", lambda state, a=attribute: shadow(state, a))
            refused("tensors of another shape, type or kind", content, "is not a plain dict")
        load_safe(io.BytesIO(with_tensors(files["DiffSAC"], "policy.pth", lambda state: shadow(state, "_metadata"))))

    @pytest.mark.parametrize("model", ["DiffPPO", "sgd"])
    def test_optimizers(self, files, marker, model):
        name = "policy.optimizer.pth" if model == "DiffPPO" else "actor.optimizer.pth"

        def group(**changes):
            return lambda state: state["param_groups"][0].update(changes)

        def entry(**changes):
            return lambda state: state["state"].setdefault(0, {}).update(changes)

        for change in (
            *(group(lr=value) for value in (float("nan"), -1.0, "0.1", None, th.tensor(0.1), True)),
            *(group(params=value) for value in ([0], None, list(range(10**5)))),
            *(group(**{name: True}) for name in ("foreach", "maximize", "differentiable", "unknown")),
            *(group(weight_decay=value) for value in (float("inf"), [1])),
            *(entry(exp_avg=value) for value in (th.zeros(1), "text")),
            *(entry(step=value) for value in (float("inf"), "x")),
            entry(other=th.zeros(1)),
            *(lambda state, v=value: state.update(state=v) for value in ({0: {"a": 1}}, [1], {10**6: {}}, {"a": {}})),
            *(lambda state, v=value: state.update(param_groups=v) for value in ([], {})),
            lambda state: state.update(x=1),
            lambda state: state["param_groups"].append(state["param_groups"][0].copy()),
            lambda state: state.pop("state") and None,
        ):
            refused("states of optimizers", with_tensors(files[model], name, change), name[:-4])


class TestSettings:
    def test_networks_and_buffers_that_take_all_memory(self, files, marker):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wide = {"dict": {"net_arch": [10**6, 10**6]}}
        kwargs = [
            wide,
            {"dict": {"net_arch": [8] * 60}},
            {"dict": {"net_arch": [1] * 10**5}},
            {"dict": {"net_arch": {"dict": {"pi": [8], "qf": [10**7]}}}},
            {"dict": {"net_arch": {"dict": {"pi": [8], "qf": [8], "denoiser": [10**7]}}}},
            {"dict": {"net_arch": [0]}},
            {"dict": {"net_arch": [-1]}},
            {"dict": {"net_arch": [2**62]}},
            {"dict": {"net_arch": [8], "n_critics": 10**9}},
            {"dict": {"net_arch": [8], "n_critics": 0}},
            {"dict": {"net_arch": [8], "features_extractor_class": {"class": "stable_baselines3.NatureCNN"}}},
            {"dict": {"net_arch": [8], "device": "cuda:9"}},
            {"dict": {"net_arch": [8], "lr_schedule": 1}},
        ]
        box = lambda shape, text: {"object": ["Box", {key: {"array": ["<f4", shape, text]} for key in ("low", "high")}]}  # noqa: E731
        one = base64.b64encode(bytes(4)).decode()
        changes = [("policy_kwargs", value) for value in kwargs]
        changes += [
            ("diffusion_steps", 10**9),
            ("diffusion_steps", 2**62),
            ("buffer_size", 10**12),
            ("n_envs", 10**9),
            ("n_steps", 10**12),
            ("observation_space", {"object": ["Discrete", {"n": 2**31, "start": 0}]}),
            ("observation_space", {"object": ["MultiBinary", {"n": 2**31}]}),
            ("observation_space", {"object": ["MultiBinary", {"n": {"tuple": [2**30, 2**30]}}]}),
            ("action_space", {"object": ["Discrete", {"n": 2**31, "start": 0}]}),
            ("action_space", {"object": ["Discrete", {"n": 2**20, "start": 0}]}),
            ("action_space", {"object": ["MultiBinary", {"n": 2**31}]}),
            ("action_space", {"object": ["MultiBinary", {"n": {"tuple": [2**30, 2**30]}}]}),
            ("policy_kwargs", {"dict": {"denoiser_class": {"class": "sb3_diffusion.GraphDenoiser"}}}),
            ("observation_space", box([10**6, 10**6], one)),
            ("observation_space", box([2**40, 0], "")),
            ("observation_space", {"object": ["Dict", {"spaces_": {"dict": {}}}]}),
            ("_last_obs", {"array": ["<f8", [10**9], ""]}),
            ("action_noise", {"object": ["VectorizedActionNoise", {"base_noise": 10**9, "noises": [1]}]}),
        ]
        for name, value in changes:
            for model in ("DiffSAC", "DiffPPO"):
                if not (name == "buffer_size" and model == "DiffPPO"):
                    content = with_settings(files[model], lambda s, n=name, v=value: s["attributes"].update({n: v}))
                    refused("settings that would take all memory", content)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 300 * (1024 if sys.platform == "linux" else 2**20), grown

    def test_json_that_is_none_or_too_much(self, files, marker):
        settings = json.loads(entries_of(files["DiffSAC"])[SETTINGS])
        text = json.dumps(settings)
        for data in (
            *("", "null", "[]", "1", '"text"', "{}", '{"format": 3}', text[:-1], text + "x", "\ufeff" + text, "NaN"),
            *("[" * 200_000, '{"a":' * 100_000, "[" + "1," * 10**6 + "1]", "9" * 5000, "1e999", "-" + "9" * 30),
            *(
                text.replace('"format": 3', f'"format": {value}')
                for value in ("1", "true2", '"1"', "null", "[1]", "1e999", "NaN")
            ),
            text.replace('"format": 3', '"format": 3, "format": 3'),
            text.replace('"seed": 0', '"seed": 0, "seed": 0'),
            text.replace('"verbose": 0', '"verbose": ' + "9" * 4000),
            text.replace('"verbose": 0', '"verbose": NaN'),
            text.replace('"verbose": 0', '"verbose": ' + '{"tuple": [' * 200 + "]}" * 200),
            text.replace('"tau": 0.005', '"tau": 1e400'),
        ):
            assert data != text
            refused("JSON that is none or too much", with_entry(files["DiffSAC"], SETTINGS, data))
        for data in (b"\xff\xfe", text.encode("utf-16"), b"\0" * 1000, bytes(65 * 2**20)):
            refused("JSON that is none or too much", with_entry(files["DiffSAC"], SETTINGS, data), SETTINGS)

    def test_classes(self, files, marker):
        def set_algorithm(name):
            return with_settings(files["DiffSAC"], lambda settings: settings.update(algorithm=name))

        for name in (
            "SAC",
            "DiffPPO",
            "DiffWPO",
            "os.system",
            "",
            "diffsac",
            "DiffSAC ",
            "__import__",
            None,
            1,
            ["DiffSAC"],
            {},
        ):
            refused("another class", set_algorithm(name))
        for name in (
            "sb3_diffusion.DiffusionActorCriticPolicy",
            "torch.nn.ReLU",
            "DiffusionSACPolicy",
            "sb3_diffusion.x",
            "",
            1,
        ):
            content = with_settings(files["DiffSAC"], lambda s, n=name: s["attributes"].update(policy_class={"class": n}))
            refused("another class", content, "policy_class")
        for key, name in (
            ("features_extractor_class", "torch.nn.ReLU"),
            ("optimizer_class", "stable_baselines3.ReplayBuffer"),
            ("activation_fn", "torch.optim.Adam"),
            ("denoiser_activation_fn", "sb3_diffusion.DiffusionSACPolicy"),
        ):
            content = with_settings(
                files["DiffSAC"], lambda s, k=key, n=name: s["attributes"]["policy_kwargs"]["dict"].update({k: {"class": n}})
            )
            refused("another class", content, "policy_kwargs")

    def test_file_and_weights_of_another_model(self, files, marker):
        entries = entries_of(files["DiffSAC"])
        other = entries_of(saved(make(DiffSAC, policy_kwargs=dict(net_arch=[9]))).getvalue())
        for name in entries:
            if name.endswith(".pth") and name not in ("pytorch_variables.pth", "ent_coef_optimizer.pth"):
                mixed = zipped({**entries, name: other[name]})
                if name != "policy.pth" and th.load(io.BytesIO(other[name]), weights_only=True)["state"] == {}:
                    continue
                refused("tensors of another shape, type or kind", mixed, name[:-4])
        refused("tensors of another shape, type or kind", zipped({**entries, SETTINGS: other[SETTINGS]}), "policy")

    @pytest.mark.parametrize("model", ["DiffSAC", "DiffWPO", "DiffPPO"])
    def test_every_setting_of_every_wrong_type(self, files, marker, model):
        """Each is refused, or the model that it makes has finite weights and acts."""
        results = TRIED.setdefault("each setting replaced by others", Counter())
        settings = json.loads(entries_of(files[model])[SETTINGS])
        values = [
            None,
            True,
            -1,
            2**62,
            0.5,
            -1e308,
            "text",
            [],
            [1, "a"],
            {},
            {"dict": {}},
            {"dict": {"a": 1}},
            {"tuple": []},
        ]
        values += [{"class": "torch.nn.ReLU"}, {"array": ["<f4", [0], ""]}, {"float": "nan"}, {"deque": [None, [1]]}]
        for name in settings["attributes"]:
            for value in random.Random(name).sample(values, 4):
                content = with_settings(files[model], lambda s, n=name, v=value: s["attributes"].update({n: v}))
                try:
                    loaded = load_safe(io.BytesIO(content))
                except UnsafeModelError:
                    results["refused"] += 1
                    continue
                results["loaded"] += 1
                assert np.isfinite(loaded.predict(np.zeros(3, dtype=np.float32))[0]).all()
        for name in settings:
            others = {
                "not_stored": [None, True, 1, [], [1], {"seed": None}, {"seed": 1}, {"other": "x"}],
                "bases": [value for value in values if value != []],
            }
            for value in others.get(name, values):
                refused(
                    "each setting replaced by others", with_settings(files[model], lambda s, n=name, v=value: s.update({n: v}))
                )

    def test_parts_of_settings(self, files, marker):
        """Replace each inner value of the plain forms in turn."""
        results = TRIED.setdefault("parts of settings replaced by others", Counter())

        def places(value, path=()):
            children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, child in children:
                yield (*path, key)
                yield from places(child, (*path, key))

        def put(settings, path, value):
            for key in path[:-1]:
                settings = settings[key]
            settings[path[-1]] = value

        generator = random.Random(5)
        attributes = json.loads(entries_of(files["DiffPPO"])[SETTINGS])["attributes"]
        for path in places(attributes):
            if len(path) > 1:
                value = generator.choice(
                    [None, -1, 10**12, 0.5, "x", [], {}, [[]], "A" * 1000, {"a": 1, "b": 2}, {"class": []}]
                )
                content = with_settings(files["DiffPPO"], lambda s, p=path, v=value: put(s["attributes"], p, v))
                try:
                    load_safe(io.BytesIO(content))
                    results["loaded"] += 1
                except UnsafeModelError:
                    results["refused"] += 1


def test_texts_of_the_file_do_not_reach_the_terminal(files, capsys):
    info = "\x1b[2J\x07good\nline\u202e"
    load_safe(io.BytesIO(with_entry(files["DiffSAC"], "system_info.txt", info)), print_system_info=True)
    out = capsys.readouterr().out
    assert "[2Jgood\nline\n" in out and "\x1b" not in out and "\u202e" not in out
    with pytest.raises(UnsafeModelError) as error:
        load_safe(io.BytesIO(with_settings(files["DiffSAC"], lambda s: s["not_stored"].update({"\x1b[2J": "\x07" * 10**6}))))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000
