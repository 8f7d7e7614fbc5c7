"""The site's own images, found, split and read in one way by whoever needs them. None is ever sent."""

from __future__ import annotations

from collections import Counter
from typing import cast

from fedpalm.data.modality import Modality, modality_of
from fedpalm.data.readers import SourceKind, open_source
from fedpalm.data.records import ImageRecord, problems_error
from fedpalm.data.signature_sets import SignatureSet, open_signatures
from fedpalm.data.signature_splits import SignatureSplit, require_aside, split_signatures
from fedpalm.data.signatures import Claimed, SignatureImages, SignatureRecord
from fedpalm.data.splits import SiteSplit, Unit, split_site
from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.errors import ConfigError
from fedpalm.methods.base import SiteImages
from fedpalm.plan import Plan

from .config import DataSettings


def require_data(data: DataSettings | None, plan: Plan) -> DataSettings:
    """The images that a plan's method trains on.

    Raises:
        ConfigError: the site has named none, or images of something else.
    """
    wanted = modality_of(plan.draft.method)
    if wanted is None:
        raise ConfigError(f"method {plan.draft.method!r} reads no image")
    if data is None:
        raise ConfigError(
            "this plan trains, and participant.toml has no [data]",
            safe=_UNUSED,
            next_step=f"name the site's images there: [data] {_said(wanted)}",
        )
    _require(wanted, data, f"method {plan.draft.method!r} trains on {wanted}s")
    return data


def list_palms(data: DataSettings) -> list[ImageRecord]:
    """What the configured source holds.

    Raises:
        ConfigError: it is of signatures.
        DataError: it cannot be used; says what to do.
    """
    _require("palm", data, "palms are asked for")
    kind = cast(SourceKind, data.kind)
    return open_source(data.source, kind, data.cap_per_identity, data.split_seed)


def list_signatures(data: DataSettings) -> list[SignatureRecord]:
    """What the configured source holds.

    Raises:
        ConfigError: it is of palms.
        DataError: it cannot be used; says what to do.
    """
    _require("signature", data, "signatures are asked for")
    return open_signatures(data.source, cast(SignatureSet, data.kind))


def split_records(data: DataSettings, site: str, unit: Unit) -> SiteSplit:
    """The same split of palms in training and evaluation.

    Args:
        unit: whom the plan protects.
    Raises:
        ConfigError: a cap, and the plan protects images one by one; or the source is of signatures.
        DataError: as :func:`list_palms`.
    """
    if unit == "record" and data.cap_per_identity is not None:
        raise ConfigError(
            f"at most {data.cap_per_identity} images of an identity are used here, and the plan protects "
            "each image alone: one image more or less would change which others train",
            safe="nothing was trained, and no budget spent",
            next_step="take cap_per_identity out of [data] in participant.toml",
        )
    return split_site(list_palms(data), data.split_seed, site, unit)


def split_signature_records(
    data: DataSettings, site: str, trained: TrainedSignatures | None = None
) -> SignatureSplit:
    """The same split of signatures in training and evaluation.

    Args:
        trained: what the run in question trained on (:mod:`.trained_on`); None: a run that has not begun.
    Raises:
        ConfigError: the source is of palms.
        DataError: as :func:`list_signatures`, or too few writers.
    """
    return split_signatures(list_signatures(data), data.split_seed, site, trained)


def trainable_signatures(data: DataSettings, site: str) -> SignatureSplit:
    """The split of a run that has not begun, if FedMH can train on it.

    Raises:
        ConfigError, DataError: as :func:`split_signature_records`, or no signature could be kept aside.
    """
    split = split_signature_records(data, site)
    require_aside(split.train, site)
    return split


def training_images(data: DataSettings, site: str, unit: Unit) -> SiteImages:
    """The training half of a site's closed identities, as network input.

    Raises:
        ConfigError, DataError: as :func:`split_records`, or images that cannot be read.
    """
    # Reading pixels brings an imaging library, which listing files does without.
    from fedpalm.data.loading import load_images

    split = split_records(data, site, unit)
    loaded = load_images(split.train, split.classes)
    return SiteImages(loaded.images, loaded.labels, len(loaded.classes), loaded.people)


def training_signatures(
    data: DataSettings, site: str, trained: TrainedSignatures | None = None
) -> SignatureImages:
    """What a site trains on of its closed writers, as network input.

    Numbered as :func:`~fedpalm.data.signature_image.load_signatures` does.

    Raises:
        ConfigError, DataError: as :func:`split_signature_records`, images that cannot be read, or some of
            ``trained`` that are not there.
    """
    from fedpalm.data.signature_image import load_signatures

    train = split_signature_records(data, site, trained).train
    if trained is not None and len(train) != len(trained.images):
        here = Counter(record.claimed for record in train)
        before = Counter(Claimed(one.writer, one.text) for one in trained.images)
        raise problems_error(
            f"of {len(trained.images)} signatures that this run trains on, {len(train)} are in the data",
            [f"{claim}: {before[claim] - here[claim]} missing" for claim in sorted(before - here)],
            "put them back, under the same writer's name; others may stay",
        )
    return load_signatures(train)


_UNUSED = "nothing was read, trained or sent"


def _require(wanted: Modality, data: DataSettings, why: str) -> None:
    if data.modality != wanted:
        raise ConfigError(
            f"{why}, and [data] in participant.toml names {data.modality}s",
            safe=_UNUSED,
            next_step=f"name {wanted}s there, [data] {_said(wanted)}, or take no part in this plan",
        )


def _said(modality: Modality) -> str:
    return f'modality = "{modality}", source = "PATH"'
