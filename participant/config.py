"""``participant.toml`` and the folder it lies in: who this site is, whom it dials, where its images are."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from fedpalm.data.modality import Modality
from fedpalm.data.readers import SourceKind
from fedpalm.data.signature_sets import SignatureSet
from fedpalm.errors import ConfigError
from fedpalm.plan import FamilyName, Name
from fedpalm.settings import HostPort, Settings, load_toml, parse_toml

from .files import private_folder, write_durably


class DataSettings(Settings):
    """Where the site's images are and how they are split; none of it is ever sent."""

    source: str = Field(min_length=1)
    modality: Modality = "palm"
    kind: Literal[SourceKind, SignatureSet] = "auto"
    """A layout of the modality."""
    cap_per_identity: int | None = Field(None, ge=2)
    """Of palms alone."""
    split_seed: int = Field(0, ge=0, lt=2**53)

    @model_validator(mode="after")
    def _of_the_modality(self) -> Self:
        kinds = (
            get_args(SourceKind) if self.modality == "palm" else ("auto", *get_args(SignatureSet))
        )
        if self.kind not in kinds:
            raise ValueError(
                f"kind {self.kind!r} is no layout of a {self.modality} source; these are "
                f"{', '.join(kinds)}"
            )
        if self.modality == "signature" and self.cap_per_identity is not None:
            raise ValueError("cap_per_identity is for palms; signatures are all used")
        return self


class VaultSettings(Settings):
    """What unlocks the vault; left out, the key file ``vault.key`` in the home.

    Paths are relative to the home. ``passphrase = "ask"``: a person types it when it is needed.
    """

    key_file: str | None = Field(None, min_length=1)
    passphrase: Literal["ask"] | None = None
    passphrase_file: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (
            sum(one is not None for one in (self.key_file, self.passphrase, self.passphrase_file))
            > 1
        ):
            raise ValueError("name one of key_file, passphrase and passphrase_file")
        return self


class VerificationSettings(Settings):
    """How people are enrolled and verified here; a key that is left out has the value here."""

    max_failures: int = Field(5, ge=1, le=100)
    """Attempts for one person that may fail in a row; then the person is locked out."""
    lockout_s: float = Field(60, gt=0, le=86400)
    """How long, the first time; twice as long after each further failure, a day at most."""
    attempts_per_minute: int = Field(60, ge=1, le=100_000)
    """Of everybody together."""
    subject_attempts_per_minute: int = Field(6, ge=1, le=100_000)
    application_attempts_per_minute: int = Field(30, ge=1, le=100_000)
    """Of one application that calls the service."""
    keep_attempts_days: int = Field(90, ge=1, le=3650)
    keep_images: bool = True
    """Keep enrolment images, sealed, so that ``renew`` can make templates from them again."""
    images_per_reference: int = Field(3, ge=1, le=20)
    """How many images people are enrolled with; thresholds are set for references of as many."""
    listen: HostPort = "127.0.0.1:7445"
    """Where ``serve`` listens; other machines can dial only what is not loopback."""
    remote_enrolment: bool = False
    """Whether applications may enrol."""


class ParticipantConfig(Settings):
    """The keys of ``participant.toml``. Without ``[data]`` a site can rehearse but not train."""

    federation: Name
    site: Name
    coordinator: HostPort
    data: DataSettings | None = None
    backbone: FamilyName | None = None
    """This site's own, for plans in which each site has the one that it chose; such a plan must agree."""
    keep_models: int = Field(3, ge=1, le=10_000)
    verification: VerificationSettings | None = None
    vault: VaultSettings | None = None


@dataclass(frozen=True)
class Home:
    """The folder of a site (0700) and the places in it."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "participant.toml"

    @property
    def tls(self) -> Path:
        return self.path / "tls"

    @property
    def request(self) -> Path:
        return self.path / "request.pem"

    @property
    def enrolment(self) -> Path:
        """Which invitation the site goes by, and whether it has been answered."""
        return self.path / "enrolment.json"

    @property
    def policy(self) -> Path:
        """The site's own limits; without the file the defaults hold."""
        return self.path / "policy.toml"

    @property
    def database(self) -> Path:
        return self.path / "site.sqlite3"

    @property
    def vault_header(self) -> Path:
        """How the vault is unlocked, and its wrapped keys."""
        return self.path / "vault.json"

    @property
    def vault_key(self) -> Path:
        """What unlocks the vault where ``[vault]`` names nothing else."""
        return self.path / "vault.key"

    @property
    def vault_mark(self) -> Path:
        """Which records the database must hold, so that an old one shows."""
        return self.path / "vault.mark"

    @property
    def vault_lock(self) -> Path:
        """Held while header or mark change; shared while records are read."""
        return self.path / "vault.lock"

    @property
    def state(self) -> Path:
        """Private tensors, encoded updates and sealed experts."""
        return self.path / "state"

    @property
    def masking(self) -> Path:
        """Secrets of masked attempts that go on: they belong in no backup."""
        return self.path / "masking"

    @property
    def models(self) -> Path:
        """Global models, by hash: public to the federation."""
        return self.path / "models"

    @property
    def applications(self) -> Path:
        """The site's own CA for the applications that may call ``serve``, and that service's keys."""
        return self.path / "applications"

    @property
    def lock(self) -> Path:
        return self.path / "agent.lock"

    def make(self) -> None:
        """Create the folders that are missing, all of them 0700."""
        for folder in (self.path, self.state, self.masking, self.models):
            private_folder(folder)

    def load(self) -> ParticipantConfig:
        """Raises ConfigError: the file is missing or wrong."""
        return load_toml(ParticipantConfig, self.config)

    def save(self, config: ParticipantConfig) -> None:
        """Write ``participant.toml``, durably."""
        write_durably(self.config, to_toml(config).encode())

    def with_vault(self, settings: VaultSettings | None) -> bytes:
        """``participant.toml`` with another section ``[vault]``; what else a person wrote there stays.

        Raises:
            ConfigError: the section is written in a way that is not understood here.
        """
        values = settings.model_dump(exclude_none=True) if settings is not None else {}
        section = "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
        text = _VAULT_SECTION.sub("\n", self.config.read_text(encoding="utf-8")).rstrip("\n") + "\n"
        text += f"\n[vault]\n{section}" if values else ""
        try:
            understood = parse_toml(ParticipantConfig, text.encode(), "").vault == settings
        except ConfigError:
            understood = False
        if not understood:
            raise ConfigError(
                f"{self.config}: what it says of the vault cannot be replaced",
                safe="nothing was changed",
                next_step="write it as a section that begins with the line [vault]",
            )
        return text.encode()


_VAULT_SECTION = re.compile(r"^\[vault\][^\n]*\n(?:(?!\[)[^\n]*\n?)*", re.MULTILINE)


def to_toml(config: ParticipantConfig) -> str:
    """The settings as TOML; what is unset is left out."""
    values = config.model_dump(mode="json", exclude_none=True)
    sections = {name: values.pop(name, None) for name in ("data", "vault", "verification")}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items()]
    for name, section in sections.items():
        if section is not None:
            lines += [
                "",
                f"[{name}]",
                *(f"{key} = {_toml(value)}" for key, value in section.items()),
            ]
    return "\n".join(lines) + "\n"


def _toml(value: str | float) -> str:
    # A JSON string is a TOML basic string, but for the one control character that JSON lets pass.
    return json.dumps(value).replace("\x7f", "\\u007f")
