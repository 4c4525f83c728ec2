"""Kafka's own programs, from the jars that Maven brings, run by the Java of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.integration.peers import missing

ROOT = Path(__file__).parents[2]
JARS = ROOT / "build" / "kafka-jars"
# A small machine's share: one JVM at a time, compiled quickly rather than well.
JVM_OPTIONS = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")
MAVEN_TIMEOUT_S = 300.0
TOOL_TIMEOUT_S = 120.0
JAVA_HINT = "apt install default-jre-headless"
MAVEN_HINT = "apt install maven, then .ci/kafka-jars"


def resolve() -> None:
    """Kafka's jars are in build/kafka-jars afterwards; ends the test where that cannot be."""
    if shutil.which("java") is None:
        missing("java", JAVA_HINT)
    if not (JARS / "pom.xml").exists() and shutil.which("mvn") is None:
        missing("mvn, which brings Kafka's jars,", MAVEN_HINT)
    done = subprocess.run(
        [str(ROOT / ".ci" / "kafka-jars")], capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False
    )
    if done.returncode:
        missing("what Kafka's tools consist of", f"{MAVEN_HINT}; now it says: {(done.stdout + done.stderr)[-1_000:]}")


def command(main_class: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    """How to run one of Kafka's classes."""
    resolve()
    return ["java", *JVM_OPTIONS, *options, "-cp", f"{JARS}/*", main_class, *arguments]


def run(main_class: str, *arguments: str) -> str:
    """What a tool prints; it must end well."""
    done = subprocess.run(
        command(main_class, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{main_class} ended with {done.returncode}:\n{done.stdout[-3_000:]}"
    return done.stdout
