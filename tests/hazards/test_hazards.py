"""Where each hazard of watching real training code has its test."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

COVERED = {
    "torch.compile; export; scripting": (
        "hazards/test_torch_compile.py::test_figures_and_weights_are_eager_s_in_one_graph",
        "hazards/test_torch_compile.py::test_off_cadence_nothing_is_read_and_nothing_compiled_anew",
        "hazards/test_torch_compile.py::test_a_watch_after_the_first_compiled_call_says_so",
        "hazards/test_torch_compile.py::test_an_exported_model_holds_nothing_of_ours",
        "hazards/test_loops.py::test_scripting_a_watched_model_says_to_close_the_watch_first",
    ),
    "activation checkpointing": (
        "monitor/test_watch.py::test_checkpointed_layers_are_counted_once",
        "monitor/test_batch_norms.py::test_a_recomputation_is_not_read_again",
    ),
    "in-place operations": (
        "live/test_hooks.py::test_gradients_are_exact_under_in_place_operations",
        "hazards/test_odd_tensors.py::test_in_place_operations_change_nothing_of_what_was_seen",
    ),
    "shared modules, recurrent cells": (
        "monitor/test_watch.py::test_a_shared_module_has_a_site_for_each_call",
        "hazards/test_odd_tensors.py::test_a_recurrent_cell_has_a_site_for_each_call",
    ),
    "nested, empty and non-float outputs": (
        "monitor/test_watch.py::test_nested_inputs_and_outputs",
        "hazards/test_odd_tensors.py::test_nested_outputs_have_paths_and_none_is_no_value",
    ),
    "DDP, FSDP2": (
        "monitor/test_distributed.py::test_ddp_on_two_halves_is_one_process_on_the_whole",
        "monitor/test_distributed.py::test_fsdp_on_two_halves_is_one_process_on_the_whole",
    ),
    "AMP, GradScaler, fused optimisers": (
        "monitor/test_watch.py::test_half_precision_and_channels_last",
        "monitor/test_watch.py::test_a_gradient_scaler_is_seen_through",
        "hazards/test_loops.py::test_scaled_gradients_are_told_unscaled_with_fused_optimisers_too",
    ),
    "accumulation, closures, several optimisers, optimiser-in-backward": (
        "monitor/test_watch.py::test_the_losses_of_micro_batches_add_up_and_their_samples_are_merged",
        "monitor/test_watch.py::test_a_closure_counts_once_with_its_first_loss",
        "hazards/test_loops.py::test_optimisers_that_share_a_backward_share_its_loss",
        "hazards/test_loops.py::test_an_optimiser_that_steps_in_backward_has_one_record_a_backward",
    ),
    "phases": ("monitor/test_watch.py::test_evaluation_passes_are_apart",),
    "deepcopy, pickle, torch.save, EMA copies": (
        "monitor/test_watch.py::test_copies_and_pickles_carry_no_watch",
        "live/test_hooks.py::test_a_saved_model_names_no_class_of_ours_and_loads_without_us",
        "hazards/test_loops.py::test_averaged_copies_report_to_nobody_and_average_the_same",
    ),
    "double attach, notebooks, exceptions": (
        "monitor/test_watch.py::test_a_second_watch_on_a_watched_model_names_the_first",
        "monitor/test_watch.py::test_a_forgotten_watch_goes_with_its_model",
        "hazards/test_loops.py::test_an_exception_in_the_users_forward_leaves_the_watch_whole",
        "hazards/test_loops.py::test_an_exception_in_the_users_hook_is_the_users",
    ),
    "literal forward, functional operations, fused attention, gates, out_proj": (
        "live/test_structure.py::test_shared_modules_tied_weights_unused_parts_and_literal_forward",
        "live/test_structure.py::test_transformer_layer",
        "live/test_structure.py::test_recurrent_layers_say_what_is_hidden",
    ),
    "late unfreezing, modules added or replaced": (
        "hazards/test_changing_models.py::test_a_replaced_and_an_added_layer_are_observed_and_the_old_one_is_let_go",
        "hazards/test_changing_models.py::test_late_unfreezing_is_followed",
    ),
    "odd tensors, functorch": (
        "hazards/test_odd_tensors.py::test_what_cannot_be_measured_is_listed",
        "hazards/test_odd_tensors.py::test_odd_tensors_are_read_as_they_are",
        "hazards/test_odd_tensors.py::test_function_transforms_pass_over_a_watched_model",
    ),
    "GAN loops": (
        "hazards/test_loops.py::test_gan_models_have_their_own_steps_and_losses",
        "cli/test_run.py::test_the_models_of_a_gan_are_two_streams_of_one_run",
    ),
    "workers, fork after threads, spawn": (
        "hazards/test_fork.py::test_our_kernels_start_no_threading_layer_that_a_fork_would_break",
        "test_api.py::test_forked_workers_and_importing_stay_out_of_the_way",
        "kernels/test_compiler.py::test_a_fork_in_the_middle_of_compiling_neither_hangs_nor_starts_a_thread",
        "live/test_hooks.py::test_another_process_reports_nothing",
        "cli/test_run.py::test_children_of_spawn_are_watched",
    ),
    "memory": ("hazards/test_loops.py::test_nothing_of_a_pass_is_kept_alive",),
    "monitor failure, full disk": (
        "monitor/test_watch.py::test_an_error_of_the_monitors_own_does_not_reach_training",
        "test_api.py::test_a_full_disk_in_the_middle_of_training_does_not_stop_it",
    ),
    "NaN, infinities": (
        "hazards/test_odd_tensors.py::test_nan_and_infinities_are_counted_and_the_rest_is_measured",
        "monitor/test_watch.py::test_the_operation_that_broke_the_loss_is_named",
    ),
    "names": (
        "hazards/test_names.py::test_names_with_slashes_quotes_and_markup",
        "figures/test_drift_heatmap.py::test_a_name_cannot_become_markup",
    ),
    "replay between forward and backward, stale casts, early stop": (
        "live/test_replay.py::test_training_with_replays_everywhere_is_bit_identical",
        "live/test_replay.py::test_autocast_is_replayed_without_stale_weights",
        "live/test_hooks.py::test_post_hooks_run_after_a_forward_that_raised",
    ),
    "gc.freeze": ("live/test_discover.py::test_a_frozen_collector_hides_a_model_but_not_from_the_registry",),
    "watched weights are unwatched ones": (
        "hazards/test_bit_identical.py::test_watched_and_unwatched_weights_are_the_same_bits",
    ),
}


@pytest.mark.parametrize("hazard", COVERED)
def test_every_hazard_has_its_tests(hazard):
    for place in COVERED[hazard]:
        file, _, name = place.partition("::")
        defined = [
            node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert name in defined, place
