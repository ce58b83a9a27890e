import pytest

from mlxm.pool.worker import WorkerOptions


@pytest.fixture(scope="session")
def options(tmp_path_factory: pytest.TempPathFactory) -> WorkerOptions:
    """Workers that remember from one test to the next which store is good for a model: trying them all takes long."""
    return WorkerOptions(verdicts=tmp_path_factory.mktemp("kv-stores"))
