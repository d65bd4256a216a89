"""Reproducible training on real data: what `holdfast demo` runs, and what studies will."""

# data, networks and training, by file
from holdfast.lab.dataset import Dataset as Dataset
from holdfast.lab.demo import Outcome as Outcome
from holdfast.lab.demo import read_data as read_data
from holdfast.lab.demo import run_demo as run_demo
from holdfast.lab.digits import read_digits as read_digits
from holdfast.lab.images import read_images as read_images
from holdfast.lab.networks import SETUPS as SETUPS
from holdfast.lab.networks import Setup as Setup
from holdfast.lab.networks import Variant as Variant
from holdfast.lab.networks import build as build
from holdfast.lab.reviews import read_reviews as read_reviews
