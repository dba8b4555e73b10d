package talos

import "testing"

// A cluster that says nothing must get something that can be rendered.
func TestDefaults(t *testing.T) {
	in := testInput(t)
	in.Cluster.TalosVersion, in.Cluster.KubernetesVersion, in.Cluster.PodSubnets, in.Cluster.ServiceSubnets = Defaults()
	mustRender(t, testRenderer(), in)
}
