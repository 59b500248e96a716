// Package cluster checks what `hack/cluster` hands to kind, where kind itself can't run.
package cluster

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"sigs.k8s.io/kind/pkg/apis/config/defaults"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
)

// kind decodes its configuration strictly, by these types and this library.
func TestKindAcceptsItsConfiguration(t *testing.T) {
	raw, err := os.ReadFile("../../hack/kind.yaml")
	if err != nil {
		t.Fatal(err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	decoder.KnownFields(true)
	var config v1alpha4.Cluster
	if err := decoder.Decode(&config); err != nil {
		t.Fatal(err)
	}
	if config.Kind != "Cluster" || config.APIVersion != "kind.x-k8s.io/v1alpha4" {
		t.Errorf("found %s of %s, which this kind doesn't read", config.Kind, config.APIVersion)
	}
	v1alpha4.SetDefaultsCluster(&config)
	roles := map[v1alpha4.NodeRole]int{}
	for _, node := range config.Nodes {
		roles[node.Role]++
	}
	if len(config.Nodes) != 3 || roles[v1alpha4.ControlPlaneRole] != 1 || roles[v1alpha4.WorkerRole] != 2 {
		t.Errorf("want one control plane and two workers, found %v", roles)
	}
}

// The configuration names no node image: the version of kind decides it, and it is the one that hack/cluster pins.
func TestKindRunsTheKubernetesOfTheLocalCluster(t *testing.T) {
	if !strings.HasPrefix(defaults.Image, "kindest/node:v1.35.") {
		t.Errorf("this kind runs %s, and the local cluster v1.35", defaults.Image)
	}
}
