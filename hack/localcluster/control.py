"""The control plane as processes of the machine: etcd, API server, controller manager, scheduler, the cluster's DNS."""

from __future__ import annotations

import csv
import io
import secrets
import shutil
from collections.abc import Mapping, Sequence

from localcluster import cgroups, daemons, kube, network, tools
from localcluster.console import step
from localcluster.settings import MAX_NODES, SERVICE_API, SERVICE_CIDR, Cluster
from localcluster.shell import replace_file, run, wait_for

DAEMONS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
ADMIN = "admin"
# Generous limits, so that a benchmark of the operator doesn't measure the clients of the control plane itself.
CLIENT_LIMITS = ("--kube-api-qps=1000", "--kube-api-burst=2000")
NO_FLAGS: Mapping[str, Sequence[str]] = {}


def is_well(cluster: Cluster) -> bool:
    """Whether all of it runs and the API answers."""
    alive = all(daemons.alive(group(cluster), cluster.control, name) for name in DAEMONS)
    return alive and cluster.kubeconfig.exists() and kube.is_serving(cluster)


def start(cluster: Cluster, flags: Mapping[str, Sequence[str]] = NO_FLAGS, admins: Sequence[str] = ()) -> None:
    """Start an empty control plane; nothing of an earlier one may be left.

    Args:
        cluster: Where.
        flags: More flags of a daemon, by its name; one that is given twice counts as given last.
        admins: Users with all rights besides the administrator, so that their writes can be told apart.
    """
    for name in tools.CONTROL_PLANE:
        tools.path(name)
    with step(f"Starting the control plane of {cluster.name}"):
        control = cluster.control
        control.mkdir(parents=True)
        cgroups.create(group(cluster))
        cgroups.favour(group(cluster))  # engines take all that the processors have
        network.create_bridge(cluster)
        _make_certificates(cluster)
        _make_users(cluster)
        for name in admins:
            user(cluster, name, "system:masters")
        _start_etcd_and_api_server(cluster, flags)
        wait_for("the API server", lambda: kube.is_serving(cluster), 90, control / "kube-apiserver.log")
        _start_clients(cluster, flags)


def user(cluster: Cluster, name: str, *groups: str) -> str:
    """The token of a user, who is added if the API server is yet to start."""
    path = cluster.control / "tokens.csv"
    rows = list(csv.reader(io.StringIO(path.read_text()))) if path.exists() else []
    for row in rows:
        if row[1] == name:
            return row[0]
    rows.append([secrets.token_hex(16), name, name, ",".join(groups)])
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    replace_file(path, text.getvalue(), mode=0o600)
    return rows[-1][0]


def start_dns(cluster: Cluster) -> None:
    """Start CoreDNS on the machine's address of the cluster's network, unless it runs."""
    folder = cluster.control
    if daemons.alive(group(cluster), folder, "coredns"):
        return
    (folder / "Corefile").write_text(
        f"cluster.local:53 in-addr.arpa:53 {{\n"
        f"  bind {cluster.host_ip}\n"
        f"  errors\n"
        f"  kubernetes cluster.local in-addr.arpa {{\n"
        f"    kubeconfig {cluster.kubeconfig} {cluster.name}\n"
        f"    pods insecure\n"
        f"  }}\n"
        f"}}\n"
        # Pods here cannot reach the world: a name outside of the cluster doesn't exist, and says so at once.
        f".:53 {{\n  bind {cluster.host_ip}\n  errors\n  template ANY ANY {{\n    rcode NXDOMAIN\n  }}\n}}\n"
    )
    daemons.start(group(cluster), folder, "coredns", [tools.path("coredns"), "-conf", folder / "Corefile"])


def stop(cluster: Cluster) -> None:
    """End every process of the cluster, nodes included, and remove all that it left."""
    cgroups.remove(cluster.group)
    network.remove(cluster)
    shutil.rmtree(cluster.state, ignore_errors=True)


def group(cluster: Cluster) -> str:
    """The cgroup of the control plane's processes."""
    return f"{cluster.group}/control"


def _make_certificates(cluster: Cluster) -> None:
    folder = cluster.control
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "openssl.cnf")
    names = [f"IP:{ip}" for ip in (cluster.host_ip, SERVICE_API)]
    names += [f"DNS:{name}" for name in ("kubernetes", "kubernetes.default", "kubernetes.default.svc")]

    def certificate(name: str, subject: str, *extensions: str, signed: bool = True) -> None:
        signer = ("-CA", "ca.crt", "-CAkey", "ca.key") if signed else ()
        files = ("-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", subject, "-days", "365")
        extra = [word for extension in extensions for word in ("-addext", extension)]
        run("openssl", "req", "-x509", *key, *signer, *files, *extra, cwd=folder)

    certificate("ca", f"/CN={cluster.name}", "basicConstraints=critical,CA:TRUE", signed=False)
    leaf = "basicConstraints=critical,CA:FALSE"
    certificate(
        "apiserver", "/CN=kube-apiserver", leaf, "extendedKeyUsage=serverAuth", f"subjectAltName={','.join(names)}"
    )
    certificate("kubelet-client", "/O=system:masters/CN=kube-apiserver", leaf, "extendedKeyUsage=clientAuth")
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "tokens.key", cwd=folder)


def _make_users(cluster: Cluster) -> None:
    kube.write_kubeconfig(cluster.kubeconfig, cluster, user(cluster, ADMIN, "system:masters"))
    for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        kube.write_kubeconfig(cluster.control / f"{name}.kubeconfig", cluster, user(cluster, f"system:{name}"))
    for node in cluster.nodes(MAX_NODES):
        user(cluster, f"system:node:{node.name}", "system:nodes")


def _start_etcd_and_api_server(cluster: Cluster, flags: Mapping[str, Sequence[str]]) -> None:
    folder = cluster.control
    client, peer = (f"http://127.0.0.1:{cluster.etcd_port + offset}" for offset in (0, 1))
    daemons.start(
        group(cluster),
        folder,
        "etcd",
        [
            tools.path("etcd"),
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            "--unsafe-no-fsync",  # the cluster is thrown away: nothing must survive the machine
            "--quota-backend-bytes=8589934592",
            "--log-level=warn",
            *flags.get("etcd", ()),
        ],
    )
    daemons.start(
        group(cluster),
        folder,
        "kube-apiserver",
        [
            tools.path("kube-apiserver"),
            f"--etcd-servers={client}",
            f"--bind-address={cluster.host_ip}",
            f"--advertise-address={cluster.host_ip}",
            "--secure-port=6443",
            "--tls-cert-file=apiserver.crt",
            "--tls-private-key-file=apiserver.key",
            "--client-ca-file=ca.crt",
            "--kubelet-client-certificate=kubelet-client.crt",
            "--kubelet-client-key=kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",  # a node's name has no DNS entry
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=tokens.key",
            "--service-account-signing-key-file=tokens.key",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--enable-aggregator-routing",  # webhooks are called at their pods: there is no kube-proxy on the machine
            "--allow-privileged",
            "--max-requests-inflight=3000",
            "--max-mutating-requests-inflight=1500",
            *flags.get("kube-apiserver", ()),
        ],
    )


def _start_clients(cluster: Cluster, more: Mapping[str, Sequence[str]]) -> None:
    def begin(name: str, *flags: str) -> None:
        common = (f"--kubeconfig={name}.kubeconfig", "--leader-elect=false", "--secure-port=0", *CLIENT_LIMITS)
        argv = [tools.path(name), *common, *flags, *more.get(name, ())]
        daemons.start(group(cluster), cluster.control, name, argv)

    begin(
        "kube-controller-manager",
        "--service-account-private-key-file=tokens.key",
        "--use-service-account-credentials",
        "--root-ca-file=ca.crt",
    )
    begin("kube-scheduler")
