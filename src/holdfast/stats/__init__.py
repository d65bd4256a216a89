"""Mergeable statistics: one a file; `a + b` is the statistic of the concatenated data."""

# statistics of a whole tensor
# statistics of every channel
# one look at a tensor
from holdfast.stats.batch_statistics import BatchStatistics as BatchStatistics
from holdfast.stats.batch_statistics import Running as Running
from holdfast.stats.channels import ChannelMoments as ChannelMoments
from holdfast.stats.counts import Counts as Counts
from holdfast.stats.covariance import Covariance as Covariance
from holdfast.stats.extremes import Extremes as Extremes
from holdfast.stats.features import Features as Features
from holdfast.stats.moments import Moments as Moments
from holdfast.stats.observation import Observation as Observation
from holdfast.stats.observation import observe as observe
from holdfast.stats.paired_difference import PairedDifference as PairedDifference
from holdfast.stats.sketch import Sketch as Sketch
from holdfast.stats.summary import Summary as Summary
