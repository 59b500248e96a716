"""Settings come from the environment; one that can't be used is named."""

from __future__ import annotations

import pytest

from gpubatch_operator.core.limits import NamespaceCaps
from gpubatch_operator.kube.lease import REQUEST_SECONDS
from gpubatch_operator.settings import Settings, SettingsError, load


def test_without_variables_the_defaults_hold():
    assert load({}) == Settings()


def test_a_leader_that_is_dead_is_replaced_within_25_seconds():
    settings = Settings()
    # The lease, the pause of a follower that looks a little too early, and a request that takes as long as it may.
    assert settings.lease_duration_seconds + 1.2 * settings.lease_retry_seconds + REQUEST_SECONDS < 25


def test_settings_are_read_from_the_environment():
    got = load({"GPUBATCH_SLOTS_PER_NODE": "2", "GPUBATCH_LOG_FORMAT": "text", "GPUBATCH_IMAGE_PULL_SECONDS": "1.5"})
    assert (got.slots_per_node, got.log_format, got.image_pull_seconds) == (2, "text", 1.5)


def test_variables_that_are_not_ours_are_left_alone():
    """Kubernetes sets GPUBATCH_... by itself where a Service has that name."""
    assert load({"GPUBATCH_METRICS_SERVICE_HOST": "10.0.0.1", "PATH": "/bin", "SLOTS_PER_NODE": "9"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUBATCH_SLOTS_PER_NODE", "many"),
        ("GPUBATCH_SLOTS_PER_NODE", "0"),
        ("GPUBATCH_WEBHOOK_TIMEOUT_SECONDS", "-1"),
        ("GPUBATCH_LEASE_RENEW_SECONDS", "15"),
        ("GPUBATCH_INSTANCE", "Ours"),
        ("GPUBATCH_METRICS_PORT", "70000"),
        ("GPUBATCH_LOG_FORMAT", "xml"),
        ("GPUBATCH_FULL_QUEUE_POLICY", "Drop"),
        ("GPUBATCH_NAMESPACE_CAPS", "{'team-a': 1}"),
        ("GPUBATCH_NAMESPACE_CAPS", '{"team-a": {"maxSlot": 1}}'),
        ("GPUBATCH_WEBHOOK_ALLOWED_NETWORKS", "10.0.0.0/8, localhost"),
        ("GPUBATCH_WEBHOOK_ALLOWED_NETWORKS", "10.0.0.1/8"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: str):
    with pytest.raises(SettingsError, match=name):
        load({name: value})


def test_a_namespaces_own_caps_replace_those_of_all():
    settings = load({"GPUBATCH_NAMESPACE_CAPS": '{"team-a": {"maxSlots": 2}, "*": {"maxPriority": 10}}'})
    caps = settings.queue_limits().caps
    assert caps("team-a") == NamespaceCaps(max_slots=2)
    assert caps("team-b") == NamespaceCaps(max_priority=10)
    assert Settings().queue_limits().caps("team-a") == NamespaceCaps()


def test_a_wrong_cap_is_named_with_its_place():
    with pytest.raises(SettingsError, match=r"at team-a\.maxSlots: .*greater than or equal to 0"):
        load({"GPUBATCH_NAMESPACE_CAPS": '{"team-a": {"maxSlots": -1}}'})


def test_every_setting_is_described():
    assert all(len(f.description or "") > 10 for f in Settings.model_fields.values())
