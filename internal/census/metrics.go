package census

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/provisiond/provisiond/internal/inventory"
)

// descs are the metrics of a count. Machines are counted and never named; clusters and
// subnets are as many as operators made.
type descs struct {
	machines, alarms, waiting, reimages, bootstrap, nics, poolSize, poolUsed, took, at *prometheus.Desc
}

func newDescs() descs {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName("provisiond", "", name), help, labels, nil)
	}
	return descs{
		machines:  d("machines", "Registered machines by phase.", "cluster", "phase"),
		alarms:    d("machine_alarms", "Machines whose keys may be out, until somebody acknowledges it.", "cluster"),
		waiting:   d("machines_awaiting_approval", "Machines that wait for a person to approve them.", "cluster"),
		reimages:  d("reimages_outstanding", "Machines that are to be wiped, or were and have not fetched their config since.", "cluster"),
		bootstrap: d("bootstrap_state", "1 for the state that the bootstrap of a cluster is in.", "cluster", "state"),
		nics:      d("discovered_nics", "NICs that asked and belong to no registered machine."),
		poolSize:  d("dhcpv6_pool_addresses", "Addresses in the pool of a subnet, reserved ones included.", "subnet"),
		poolUsed:  d("dhcpv6_pool_leased", "Addresses of the pool of a subnet that are promised, or kept out of use after a Decline.", "subnet"),
		took:      d("census_duration_seconds", "How long it took to count the inventory."),
		at:        d("census_timestamp_seconds", "When the inventory was counted, in seconds since 1970."),
	}
}

// phases are those of registered machines.
func phases() []inventory.Phase {
	return []inventory.Phase{
		inventory.PhaseRegistered, inventory.PhaseOffered, inventory.PhaseLoading, inventory.PhaseConfiguring, inventory.PhaseInstalling,
		inventory.PhaseBooting, inventory.PhaseReady, inventory.PhaseReimaging, inventory.PhaseStalled, inventory.PhaseFailed,
	}
}

// Describe implements prometheus.Collector.
func (c *Census) Describe(to chan<- *prometheus.Desc) {
	d := &c.descs
	for _, desc := range []*prometheus.Desc{d.machines, d.alarms, d.waiting, d.reimages, d.bootstrap, d.nics, d.poolSize, d.poolUsed, d.took, d.at} {
		to <- desc
	}
}

// Collect implements prometheus.Collector.
func (c *Census) Collect(to chan<- prometheus.Metric) {
	n := c.latest()
	if n == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	d := &c.descs
	for cluster, t := range n.clusters {
		for _, p := range phases() {
			gauge(d.machines, float64(t.phases[p]), cluster, string(p))
		}
		gauge(d.alarms, float64(t.alarms), cluster)
		gauge(d.waiting, float64(t.waiting), cluster)
		gauge(d.reimages, float64(t.reimages), cluster)
		if t.bootstrap == "" {
			continue
		}
		for _, state := range bootstrapStates() {
			is := 0.0
			if state == t.bootstrap {
				is = 1
			}
			gauge(d.bootstrap, is, cluster, state)
		}
	}
	for _, p := range n.pools {
		gauge(d.poolSize, float64(p.Size), p.Subnet)
		gauge(d.poolUsed, float64(p.Used), p.Subnet)
	}
	gauge(d.nics, float64(n.nics))
	gauge(d.took, n.took.Seconds())
	gauge(d.at, float64(n.at.UnixMilli())/1e3)
}
