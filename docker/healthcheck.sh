#!/usr/bin/env bash
# Healthy: Ray has started in this container, and the cluster's GCS answers.
set -euo pipefail

# Written when `ray start` is done; GCS alone answers too early.
[[ -s /tmp/ray/ray_current_cluster ]]
exec ray health-check --address "$(</tmp/ray/ray_current_cluster)"
