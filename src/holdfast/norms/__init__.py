"""Normalisers: `torch.nn`'s constructors and keys, with the statistics they compute handed out as telemetry."""

# what a normaliser computes, and how to get one
# torch's normalisers of a model made ours, and back
from holdfast.norms.adopt import adopt as adopt
from holdfast.norms.adopt import release as release

# by a mix of both
from holdfast.norms.batch_layer_norm import BatchLayerNorm as BatchLayerNorm

# by the statistics of a batch
from holdfast.norms.batch_norm import BatchNorm1d as BatchNorm1d
from holdfast.norms.batch_norm import BatchNorm2d as BatchNorm2d
from holdfast.norms.batch_norm import BatchNorm3d as BatchNorm3d
from holdfast.norms.batch_renorm import BatchRenorm as BatchRenorm

# by the statistics of a domain
from holdfast.norms.domain_batch_norm import DomainBatchNorm as DomainBatchNorm
from holdfast.norms.domain_batch_norm import in_domain as in_domain

# without statistics
from holdfast.norms.dynamic_tanh import DynamicTanh as DynamicTanh

# with an activation of its own
from holdfast.norms.evo_norm import EvoNormB0 as EvoNormB0
from holdfast.norms.evo_norm import EvoNormS0 as EvoNormS0
from holdfast.norms.filter_response_norm import TLU as TLU
from holdfast.norms.filter_response_norm import FilterResponseNorm as FilterResponseNorm

# any other combination of axes, centre and scale
from holdfast.norms.general import Norm as Norm
from holdfast.norms.ghost_batch_norm import GhostBatchNorm as GhostBatchNorm

# by the statistics of a sample
from holdfast.norms.group_norm import GroupNorm as GroupNorm
from holdfast.norms.instance_norm import InstanceNorm1d as InstanceNorm1d
from holdfast.norms.instance_norm import InstanceNorm2d as InstanceNorm2d
from holdfast.norms.instance_norm import InstanceNorm3d as InstanceNorm3d
from holdfast.norms.layer_norm import LayerNorm as LayerNorm
from holdfast.norms.layer_norm import LayerNorm2d as LayerNorm2d
from holdfast.norms.make import make as make

# queries and keys of an attention
from holdfast.norms.qk_norm import QKNorm as QKNorm

# by the statistics of a time step
from holdfast.norms.recurrent_batch_norm import RecurrentBatchNorm as RecurrentBatchNorm

# divided by a scale, not centred
from holdfast.norms.rms_norm import RMSNorm as RMSNorm
from holdfast.norms.running import accumulate as accumulate
from holdfast.norms.scale_norm import ScaleNorm as ScaleNorm
from holdfast.norms.spec import NormSpec as NormSpec
from holdfast.norms.switchable_norm import SwitchableNorm as SwitchableNorm
from holdfast.norms.sync_batch_norm import SyncBatchNorm as SyncBatchNorm

# by a reference batch and the sample
from holdfast.norms.virtual_batch_norm import VirtualBatchNorm as VirtualBatchNorm
from holdfast.norms.virtual_batch_norm import reference_pass as reference_pass

# of weights instead of activations
from holdfast.norms.weight_standardisation import WeightStandardisation as WeightStandardisation
from holdfast.norms.weight_standardisation import remove_weight_standardisation as remove_weight_standardisation
from holdfast.norms.weight_standardisation import weight_standardise as weight_standardise
