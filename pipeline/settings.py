"""The one settings object. Flags win over environment variables (MARKETSTREAM_...), those over defaults."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import SettingsError

PREFIX = "MARKETSTREAM_"


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketstream"


FORMER_NAMES = {"paths": "marketplace", "paths-published": "marketplace-published"}
"""Of learners; whoever still uses one gets the learner."""

LearnerName = Annotated[
    Literal["clearing", "marketplace", "marketplace-published"],
    BeforeValidator(lambda name: FORMER_NAMES.get(name, name)),
]


class Settings(BaseSettings):
    """Everything that can be set, with its default. Frozen; each field is a flag and a variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True)

    broker: str = Field(
        "sqlite:///state/stream.db", description="where the stream is: sqlite:///FILE or kafka://HOST:PORT"
    )
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="put before every topic's name")
    partitions: int | None = Field(
        None, ge=1, le=1024, description="partitions of the topic images (default: as many as it has, or 1)"
    )
    retention: int | None = Field(
        None, ge=1, description="newest records that each partition of images keeps (SQLite; default: all)"
    )
    retention_bytes: int | None = Field(
        None, ge=1, description="bytes of newest records that each partition of images keeps (Kafka; default: all)"
    )
    group: str = Field("learn", pattern=r"^[A-Za-z0-9._-]+$", description="consumer group of the learners")

    replication: int = Field(1, ge=1, le=32767, description="brokers that hold each partition, when it is made (Kafka)")
    record_bytes: int = Field(16 << 20, ge=1024, le=64 << 20, description="largest record, in bytes (Kafka)")
    session_timeout: float = Field(
        10.0,
        ge=1,
        le=1800,
        description="seconds until a learner that is gone is replaced, and what it left open undone (Kafka; most "
        "brokers take 6 to 1800)",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="encryption and login"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="how to log in"
    )
    kafka_username: str | None = Field(None, description="name to log in with")
    kafka_password: SecretStr | None = Field(None, description="password to log in with: set the variable, not a flag")
    kafka_ca_file: Path | None = Field(None, description="certificates to trust (default: the system's)")

    data: Path | None = Field(None, description="directory that holds the IDX files of the data sets")
    cache: Path = Field(default_factory=_default_cache, description="where fetched data sets are kept")

    learner: LearnerName = Field(
        "clearing", description="what learns: clearing, or marketplace, of which a group has one"
    )
    seed: int = Field(0, ge=0, lt=2**64, description="seed of the features, or of the vendors of marketplace")
    filters: int = Field(128, ge=1, le=1024, description="layer-2 filters of the features: accuracy against speed")
    backend: Literal["auto", "blas", "tinygrad"] = Field(
        "auto", description="what computes the features; the bits are the same"
    )
    base: Path | None = Field(None, description="base model that the learner marketplace begins with (default: none)")

    batch_size: int = Field(256, ge=1, le=4096, description="most images in a micro-batch")
    batch_wait: float = Field(0.2, gt=0, le=60, description="seconds to wait for a micro-batch to fill")
    window: int = Field(500, ge=1, le=100_000, description="images of a class that rolling accuracy looks at")

    publish_images: int = Field(
        20_000, ge=1, le=30_000, description="images that a learner of several learns before it publishes them"
    )

    snapshots: Path = Field(Path("state/snapshots"), description="where the learner keeps its snapshots")
    snapshot_images: int = Field(25_000, ge=1, description="images from one snapshot to the next")
    snapshots_kept: int = Field(3, ge=1, description="newest snapshots that are kept")

    metrics_host: str = Field("127.0.0.1", description="address that /metrics and /healthz listen on")
    metrics_port: int = Field(9108, ge=0, le=65535, description="their port; 0 takes a free one")
    producer_metrics_port: int = Field(9109, ge=0, le=65535, description="port of a producer's; 0 takes a free one")


def load(flags: dict[str, object]) -> Settings:
    """Settings from flags (those that are not None), the environment and defaults.

    Raises SettingsError, which names the flag and the variable.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise SettingsError(
            f"--{name.replace('_', '-')} (or {PREFIX}{name.upper()}): {problem['msg']}, but it is {problem['input']!r}"
        ) from None
