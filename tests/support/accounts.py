"""Service accounts with rights of their own."""

from __future__ import annotations

from support.api import JSON, Api

RBAC = "rbac.authorization.k8s.io"


async def account(api: Api, name: str, resources: list[str], verbs: list[str], *where: str) -> str:
    """A service account of the tests' namespace that may do this to our resources in these namespaces; its token."""
    path = f"/api/v1/namespaces/{api.namespace}/serviceaccounts"
    await api.client.create(path, {"metadata": {"name": name}})
    for namespace in where:
        roles = f"/apis/{RBAC}/v1/namespaces/{namespace}"
        rules = [{"apiGroups": ["gpubatch.dev"], "resources": resources, "verbs": verbs}]
        await api.client.create(f"{roles}/roles", {"metadata": {"name": name}, "rules": rules})
        binding: JSON = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": api.namespace}],
        }
        await api.client.create(f"{roles}/rolebindings", binding)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token: str = (await api.client.create(f"{path}/{name}/token", request))["status"]["token"]
    return token
