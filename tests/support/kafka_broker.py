"""A KRaft broker of one node on 127.0.0.1, which takes partitions over that it did not write.

The cluster must know the topic, under the id that `partition.metadata` in the partition's directory names.
Source: LogManager (isStrayKraftReplica) and LogLoader, Apache Kafka 4.1.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from tests.integration.peers import free_port
from tests.support.kafka_jars import command, run

CLUSTER_ID = "Z2F0ZXdheS10ZXN0cy0wMQ"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
CLEAN_SHUTDOWN = ".kafka_cleanshutdown"
KEPT = ("partition.metadata", "leader-epoch-checkpoint")

# One node is everything; few threads and small buffers, as the tests have two cores and little memory.
_SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={logs}
num.network.threads=1
num.io.threads=2
background.threads=1
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=4194304
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
group.initial.rebalance.delay.ms=0
"""
_LOGGING = """
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
# Hundreds of lines, one for each setting.
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
"""


class KraftBroker:
    """A broker with a directory of its own; `format` it once, then start and stop it as often as wanted."""

    def __init__(self, directory: Path) -> None:
        """directory: new, or that of a stopped broker (or a copy): it goes on with what is there, on other ports."""
        self.port = free_port()
        self.logs = directory / "logs"
        self._output = directory / "broker.out"
        self._settings = directory / "server.properties"
        self._logging = directory / "log4j2.properties"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._settings.write_text(_SETTINGS.format(port=self.port, controller=free_port(), logs=self.logs))
        self._logging.write_text(_LOGGING)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        """What it has said since it was started last."""
        return self._output.read_text(errors="replace")

    def format(self) -> None:
        """Make it an empty cluster."""
        run("kafka.tools.StorageTool", "format", "--cluster-id", CLUSTER_ID, "--config", str(self._settings))

    def start(self) -> KraftBroker:
        options = (f"-Dlog4j2.configurationFile={self._logging}",)
        line = command("kafka.Kafka", str(self._settings), options=options)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            self._wait_until_started(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_started(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Kafka Server started" not in self.output:
            assert process.poll() is None, f"the broker ended by itself:\n{self.output[-5_000:]}"
            assert time.monotonic() < deadline, f"the broker does not come up:\n{self.output[-5_000:]}"
            time.sleep(0.05)

    def stop(self) -> None:
        """It closes its logs; then the directory may be changed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            raise
        finally:
            self._process = None

    def __enter__(self) -> KraftBroker:
        return self.start()

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.stop()
        if isinstance(error, Exception):
            error.add_note(f"The broker said:\n{self.output[-10_000:]}")

    def partition(self, topic: str) -> Path:
        """The directory of a topic's only partition."""
        return self.logs / f"{topic}-0"

    def replace_files(self, topic: str, files: Iterable[Path]) -> None:
        """While it is stopped, cleanly: these files instead of what the topic had, of which id and epoch are kept."""
        assert (self.logs / CLEAN_SHUTDOWN).exists(), f"the broker did not stop cleanly:\n{self.output[-5_000:]}"
        for old in self.partition(topic).iterdir():
            if old.name not in KEPT:
                old.unlink()
        for new in files:
            shutil.copy(new, self.partition(topic))

    def forget_clean_stop(self) -> None:
        """While it is stopped: make it believe that it crashed, so that it looks at every batch when it starts."""
        (self.logs / CLEAN_SHUTDOWN).unlink()
