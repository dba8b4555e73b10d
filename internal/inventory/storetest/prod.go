package storetest

import (
	"context"
	"net/netip"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Prod is an inventory in memory of one rack, 2001:db8::/64, and the cluster "prod",
// which has no machines yet and is not bootstrapped.
func Prod(ctx context.Context) (*inventory.Keeper, error) {
	k, err := inventory.NewKeeper(ctx, NewMemory(), inventory.KeeperConfig{Subnets: []inventory.Subnet{{
		Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"),
		Machines:  inventory.Range{First: netip.MustParseAddr("2001:db8::100"), Last: netip.MustParseAddr("2001:db8::1ff")},
		Preferred: time.Hour, Valid: time.Hour,
	}}})
	if err != nil {
		return nil, err
	}
	_, err = k.CreateCluster(ctx, &inventory.Cluster{
		Name: "prod", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("bundle"))
	return k, err
}
