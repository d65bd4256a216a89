"""Treatments: changes to a model, to its optimiser, or (recipes) to the user's script; each with plan and receipt."""

from holdfast.core.treatment import Treatment
from holdfast.treatments.clip import Clip as Clip
from holdfast.treatments.decouple_decay import DecoupleDecay as DecoupleDecay
from holdfast.treatments.drop_bias import DropBias as DropBias
from holdfast.treatments.fold import Fold as Fold
from holdfast.treatments.freeze_batchnorm import FreezeBatchNorm as FreezeBatchNorm
from holdfast.treatments.insert_norm import InsertNorm as InsertNorm
from holdfast.treatments.normalise_streams import NormaliseStreams as NormaliseStreams
from holdfast.treatments.re_estimate import ReEstimate as ReEstimate
from holdfast.treatments.reinitialise import Reinitialise as Reinitialise
from holdfast.treatments.reorder_norm import ReorderNorm as ReorderNorm
from holdfast.treatments.replace_activation import ReplaceActivation as ReplaceActivation
from holdfast.treatments.scale_input import ScaleInput as ScaleInput
from holdfast.treatments.scale_rate import ScaleRate as ScaleRate
from holdfast.treatments.scale_residual import ScaleResidual as ScaleResidual
from holdfast.treatments.split_decay import SplitDecay as SplitDecay
from holdfast.treatments.swap_norm import SwapNorm as SwapNorm
from holdfast.treatments.warm_up import WarmUp as WarmUp
from holdfast.treatments.z_loss import ZLoss as ZLoss

TREATMENTS: dict[str, type[Treatment]] = {
    treatment.name: treatment
    for treatment in (
        # the model's layers
        DropBias,
        Fold,
        FreezeBatchNorm,
        InsertNorm,
        NormaliseStreams,
        ReEstimate,
        Reinitialise,
        ReorderNorm,
        ReplaceActivation,
        ScaleResidual,
        SwapNorm,
        # the optimiser
        DecoupleDecay,
        ScaleRate,
        SplitDecay,
        # recipes: lines for the script
        Clip,
        ScaleInput,
        WarmUp,
        ZLoss,
    )
}
"""Every treatment by the name that findings use; each takes `batch=` and further options of its own."""
