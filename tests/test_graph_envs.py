"""MaxCut-v0 and TSP-v0: rewards by hand, brute force, files, pictures, checkers; and the denoiser over graphs."""

import gymnasium as gym
import networkx as nx
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import DiffPPO, GraphDenoiser, TourDenoiser
from sb3_diffusion.common.envs import MaxCutEnv, TSPEnv
from sb3_diffusion.common.envs.combinatorial import tour_length
from sb3_diffusion.common.envs.graphs import cut_value, one_exchange, random_graph, read_graph
from sb3_diffusion.deployment import export_onnx, export_program

SQUARE = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
SMALL = dict(n_steps=4, batch_size=8, n_epochs=1, seed=0)


@pytest.mark.filterwarnings("ignore:.*MultiBinary.*")
@pytest.mark.parametrize(("env_id", "kwargs"), [("MaxCut-v0", dict(n_nodes=8)), ("TSP-v0", dict(n_cities=6))])
def test_checkers(env_id, kwargs):
    check_env(gym.make(env_id, **kwargs), warn=True)
    gymnasium_check_env(gym.make(env_id, render_mode="rgb_array", **kwargs).unwrapped)


@pytest.mark.parametrize("env", [MaxCutEnv(6, render_mode="rgb_array"), TSPEnv(5, render_mode="rgb_array")])
def test_pictures(env):
    env.reset(seed=0)
    before = env.render()
    env.action_space.seed(1)
    _, _, terminated, truncated, _ = env.step(env.action_space.sample())
    after = env.render()
    assert terminated and not truncated
    assert before.shape == after.shape == (256, 256, 3) and before.dtype == np.uint8
    assert (before != after).any()


def test_cut():
    env = MaxCutEnv(graph=SQUARE)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs["adjacency"], SQUARE)
    for sides, cut in (([0, 1, 0, 1], 4), ([1, 0, 1, 0], 4), ([0, 0, 1, 1], 2), ([0, 0, 0, 0], 0), ([1, 0, 0, 0], 2)):
        env.reset()
        _, reward, terminated, _, info = env.step(np.array(sides, dtype=np.int8))
        assert terminated and info["cut"] == cut and reward == pytest.approx(cut / 4)


def test_cut_by_networkx():
    graph = nx.gnm_random_graph(9, 20, seed=1)
    rng = np.random.default_rng(0)
    for i, j in graph.edges:
        graph[i][j]["weight"] = float(rng.integers(-3, 4)) or 1.0
    adjacency = nx.to_numpy_array(graph)
    for _ in range(20):
        sides = rng.integers(0, 2, 9)
        expected = nx.cut_size(graph, set(np.flatnonzero(sides)), weight="weight")
        assert cut_value(adjacency, sides) == pytest.approx(expected)
    env = MaxCutEnv(graph=graph)
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)


def test_local_search():
    rng = np.random.default_rng(0)
    graph = random_graph("ba", 12, rng)
    sides = one_exchange(graph, rng.integers(0, 2, 12))
    for i in range(12):
        other = sides.copy()
        other[i] = 1 - other[i]
        assert cut_value(graph, other) <= cut_value(graph, sides)


def test_graphs_of_several_sizes():
    env = MaxCutEnv(12, min_nodes=5, kind="er", edge_share=0.5)
    sizes = set()
    for seed in range(50):
        obs, _ = env.reset(seed=seed)
        assert env.observation_space.contains(obs)
        size = int(obs["mask"].sum())
        sizes.add(size)
        assert not obs["adjacency"][size:].any() and not obs["adjacency"][:, size:].any() and obs["adjacency"].any()
    assert sizes == set(range(5, 13))


@pytest.mark.parametrize("kind", ["ba", "er"])
def test_graphs_are_drawn_anew_and_reproducibly(kind):
    env = MaxCutEnv(10, kind=kind)
    first, second, again = (env.reset(seed=seed)[0]["adjacency"] for seed in (0, 1, 0))
    assert (first != second).any() and (first == again).all()
    assert (env.reset()[0]["adjacency"] != again).any()


def test_files(tmp_path):
    path = tmp_path / "graph.txt"
    path.write_text("4 4\n1 2 1\n2 3 1\n3 4 1\n4 1 1\n")
    np.testing.assert_array_equal(read_graph(path), SQUARE)
    path.write_text("3 2\n1 2\n2 3 -2.5\n")
    np.testing.assert_array_equal(read_graph(path), [[0, 1, 0], [1, 0, -2.5], [0, -2.5, 0]])
    for text, message in (
        ("", "the first line"),
        ("a b\n", "the first line"),
        ("3 2\n1 2 1\n", "says 2 edges and has 1"),
        ("3 1\n1 4 1\n", "nodes are two of 1 to 3"),
        ("3 1\n1 1 1\n", "nodes are two of 1 to 3"),
        ("3 1\n1 2 nan\n", "the weight is finite"),
        ("3 1\n1 x 1\n", "is not an edge"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_graph(path)


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (np.zeros((3, 3)), "nothing to cut"),
        (np.ones((3, 3)), "without loops"),
        (np.triu(np.ones((3, 3)), 1), "undirected"),
        (np.ones((2, 3)), "undirected"),
    ],
)
def test_bad_graphs(graph, message):
    with pytest.raises(ValueError, match=message):
        MaxCutEnv(graph=graph)
    with pytest.raises(ValueError, match="has 4 nodes: the spaces have room for 3"):
        MaxCutEnv(3).reset(options=dict(graph=SQUARE))


def test_arguments_out_of_range():
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match="edge_share"):
            MaxCutEnv(kind="er", edge_share=share)
    with pytest.raises(ValueError, match="weights beyond 1"):
        MaxCutEnv(n_nodes=4).reset(options=dict(graph=5 * (1 - np.eye(3))))


def test_absent_nodes_follow_the_reference_kernel():
    env = MaxCutEnv(n_nodes=6, min_nodes=6)
    kwargs = dict(net_arch=[], denoiser_class=GraphDenoiser, denoiser_kwargs=dict(width=8))
    policy = DiffPPO("MultiInputPolicy", env, diffusion_steps=3, policy_kwargs=kwargs, seed=0).policy
    obs, _ = env.reset(options=dict(graph=1 - np.eye(4)), seed=0)
    with th.no_grad():
        th.nn.init.normal_(policy.score_network.denoiser.head[1].bias)
        log_q, log_r = policy.control_fn(policy.encode_for_actor(policy.obs_to_tensor(obs)[0]))(th.zeros(1, 6), 2)
    assert th.allclose(log_q[:, 4:], log_r[:, 4:], atol=1e-6) and not th.allclose(log_q[:, :4], log_r[:, :4], atol=1e-3)


def test_tours():
    env = TSPEnv(4)
    corners = np.array([[0, 0], [1, 1], [1, 0], [0, 1]], dtype=np.float32)
    obs, _ = env.reset(options=dict(nodes=corners))
    assert env.observation_space.contains(obs)
    assert obs["adjacency"][0, 2] == pytest.approx(np.exp(-2)) and not obs["adjacency"].diagonal().any()
    _, reward, terminated, _, info = env.step(np.array([0, 2, 1, 3]))
    assert terminated and info["tour"].tolist() == [0, 2, 1, 3] and info["length"] == pytest.approx(4)
    assert reward == pytest.approx(-4 / (0.7124 * 2))
    env.reset(options=dict(nodes=corners))
    # Equal priorities: by number
    assert env.step(np.array([3, 3, 3, 3]))[-1]["tour"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="give 4 points"):
        env.reset(options=dict(nodes=corners + 1))
    assert tour_length(corners, np.array([0, 1, 2, 3])) == pytest.approx(2 + 2 * 2**0.5)


def make_denoiser(n=5, f=0, m=2, output_dim=None, **kwargs):
    th.manual_seed(0)
    denoiser = GraphDenoiser(n * n + n + f * n, n, m * n, m * n if output_dim is None else output_dim, 3, width=8, **kwargs)
    with th.no_grad():
        for param in denoiser.parameters():
            param.add_(0.3 * th.randn_like(param))
    return denoiser


@pytest.mark.parametrize("f", [0, 2])
def test_denoiser_is_equivariant(f):
    n = 5
    rng = np.random.default_rng(0)
    adjacency, nodes = th.as_tensor(random_graph("ba", n, rng)), th.randn(n, f)
    x, order = th.randn(2, n), th.as_tensor(rng.permutation(n))

    def features(order):
        return th.cat((adjacency[order][:, order].flatten(), th.ones(n), nodes[order].flatten()))[None]

    for output_dim in (None, 1):
        denoiser = make_denoiser(n, f, output_dim=output_dim)
        plain = denoiser(denoiser.encode(features(th.arange(n))), x.flatten()[None], 2)
        permuted = denoiser(denoiser.encode(features(order)), x[:, order].flatten()[None], 2)
        if output_dim is None:
            plain = plain.unflatten(-1, (2, n))[..., order].flatten(-2)
        th.testing.assert_close(permuted, plain, atol=1e-5, rtol=1e-5)


def test_denoiser_does_not_see_what_the_mask_leaves_out():
    n, size = 6, 4
    rng = np.random.default_rng(0)
    small = th.as_tensor(random_graph("ba", size, rng))
    padded = th.zeros(n, n)
    padded[:size, :size] = small
    x = th.randn(2, n)
    for value in (False, True):
        large, fitting = (
            make_denoiser(n, output_dim=1 if value else None),
            make_denoiser(size, output_dim=1 if value else None),
        )
        fitting.load_state_dict(large.state_dict())
        with_room = large(large.encode(th.cat((padded.flatten(), (th.arange(n) < size).float()))[None]), x.flatten()[None], 1)
        alone = fitting(fitting.encode(th.cat((small.flatten(), th.ones(size)))[None]), x[:, :size].flatten()[None], 1)
        if not value:
            with_room = with_room.unflatten(-1, (2, n))[..., :size].flatten(-2)
        th.testing.assert_close(with_room, alone, atol=1e-5, rtol=1e-5)


def test_denoiser_of_another_observation():
    with pytest.raises(ValueError, match="features are not the adjacency"):
        GraphDenoiser(7, 5, 10, 10, 3)


def tour_features(points):
    n = len(points)
    closeness = th.exp(-3 * (points[:, None] - points).norm(dim=-1)) * (1 - th.eye(n))
    return th.cat((closeness.flatten(), th.ones(n), points.flatten()))[None]


def places_as_ones(places):
    return th.nn.functional.one_hot(places, len(places)).float().T.flatten()[None]


@pytest.mark.parametrize("output_dim", [36, 1])
def test_tours_turn_and_permute(output_dim):
    n = 6
    denoiser = TourDenoiser(n * n + 3 * n, n, n * n, output_dim, 3, width=8)
    with th.no_grad():
        for param in denoiser.parameters():
            param.add_(0.3 * th.randn_like(param))
    points, places, order = th.rand(n, 2), th.tensor([0, 3, 3, 1, 5, 2]), th.randperm(n)

    def out(points, places):
        output = denoiser(denoiser.encode(tour_features(points)), places_as_ones(places), 2)
        return output.unflatten(-1, (n, n)) if output_dim > 1 else output

    plain, permuted, turned = out(points, places), out(points[order], places[order]), out(points, (places + 2) % n)
    if output_dim > 1:
        plain, turned = plain[..., order], turned.roll(-2, dims=-2)[..., order]
    th.testing.assert_close(permuted, plain, atol=1e-5, rtol=1e-5)
    th.testing.assert_close(turned, plain, atol=1e-5, rtol=1e-5)
    assert plain.std() > 0.1 if output_dim > 1 else not th.allclose(plain, out(points, (places * 5) % n))


def test_tours_of_several_steps_at_once():
    n = 5
    denoiser = TourDenoiser(n * n, n, n * n, n * n, 3, width=8)
    context = denoiser.encode(tour_features(th.rand(n, 2))[:, : n * n])
    x = th.stack([places_as_ones(th.randint(n, (n,))) for _ in range(3)])  # (3, 1, n^2)
    steps = th.tensor([[1], [2], [3]])
    single = th.stack([denoiser(context, x[i], i + 1) for i in range(3)])
    th.testing.assert_close(denoiser(context, x, steps), single)
    # Before training every place is nearly as likely as another
    assert single.abs().max() < 0.5


@pytest.mark.parametrize(("features_dim", "input_dim"), [(24, 25), (25, 10)])
def test_tours_need_as_many_places_as_cities(features_dim, input_dim):
    with pytest.raises(ValueError, match="TourDenoiser needs 'MultiInputPolicy'"):
        TourDenoiser(features_dim, 5, input_dim, 25, 3)


@pytest.mark.parametrize(
    ("env", "denoiser"), [(MaxCutEnv(6, min_nodes=4), GraphDenoiser), (TSPEnv(5), GraphDenoiser), (TSPEnv(5), TourDenoiser)]
)
def test_training(env, denoiser, tmp_path):
    policy_kwargs = dict(denoiser_class=denoiser, denoiser_kwargs=dict(width=8, n_layers=1))
    venv = make_vec_env(lambda: env, 1)
    model = DiffPPO("MultiInputPolicy", venv, diffusion_steps=3, policy_kwargs=policy_kwargs, **SMALL).learn(8)
    obs, _ = env.reset(seed=3)
    assert env.action_space.contains(model.predict(obs)[0])
    action, _ = model.predict(obs, deterministic=True)
    for safe in (False, True):
        model.save(tmp_path / "model")
        loaded = DiffPPO.load(tmp_path / "model", venv, **({"safe": True} if safe else {}))
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], action)
    model.policy.inference_steps = 6
    assert env.action_space.contains(model.predict(obs)[0])
    # These compare the file with the policy before they write it
    export_onnx(model, tmp_path / "policy.onnx")
    export_program(model, tmp_path / "policy.pt2")


class LinearDenoiser(th.nn.Module):
    """The least that a denoiser of one's own must have."""

    def __init__(self, features_dim, action_dim, input_dim, output_dim, diffusion_steps, scale=0.1):
        super().__init__()
        self.layer, self.latent = th.nn.Linear(features_dim, output_dim), th.nn.Linear(input_dim, output_dim)
        self.scale = scale

    def encode(self, features):
        return self.layer(features)

    def forward(self, context, x, step):
        return self.scale * (context + self.latent(x))


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
def test_own_denoiser_for_both_chains(env_id):
    policy_kwargs = dict(denoiser_class=LinearDenoiser, denoiser_kwargs=dict(scale=0.2))
    model = DiffPPO("MlpPolicy", env_id, policy_kwargs=policy_kwargs, **SMALL).learn(8)
    assert model.policy.score_network.denoiser.scale == 0.2
    env = gym.make(env_id)
    obs, _ = env.reset(seed=0)
    action, _ = model.predict(obs, deterministic=True)
    assert env.action_space.contains(action)
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], action)
    with pytest.raises(ValueError, match=r"denoiser_kwargs\['output_dim'\]=3: leave it out"):
        policy_kwargs = dict(denoiser_class=LinearDenoiser, denoiser_kwargs=dict(output_dim=3))
        DiffPPO("MlpPolicy", env_id, policy_kwargs=policy_kwargs, **SMALL)
