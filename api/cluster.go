package api

import "time"

// ClusterSpec is what an operator says of a cluster.
type ClusterSpec struct {
	Name                string   `json:"name,omitempty" doc:"Unique name, a DNS label" example:"rack1"`
	Endpoint            string   `json:"endpoint,omitempty" doc:"The Kubernetes API as machines and kubectl reach it; may be left out on import" example:"https://[2001:db8::1]:6443"`
	TalosVersion        string   `json:"talosVersion,omitempty" doc:"Talos that is netbooted, with its v; left out: the default of this provisiond" example:"v1.13.6"`
	KubernetesVersion   string   `json:"kubernetesVersion,omitempty" doc:"Without a v; left out: the default of this provisiond" example:"1.36.2"`
	Schematic           string   `json:"schematic,omitempty" doc:"Image Factory schematic; left out: plain Talos"`
	PodSubnets          []string `json:"podSubnets,omitempty" doc:"IPv6 prefixes; left out: the default"`
	ServiceSubnets      []string `json:"serviceSubnets,omitempty" doc:"IPv6 prefixes, /108 or longer; left out: the default"`
	DNS                 []string `json:"dns,omitempty" doc:"Name servers; left out: those of the machine's subnet"`
	NTP                 []string `json:"ntp,omitempty" doc:"Time servers, addresses or names; left out: those of the machine's subnet"`
	Addressing          string   `json:"addressing,omitempty" enum:"static,dhcpv6" doc:"How installed systems get their address; left out: static"`
	Approval            string   `json:"approval,omitempty" enum:"none,required" doc:"Does a person approve each machine, by the code on its console, before it is given its config? left out: none"`
	Delivery            string   `json:"delivery,omitempty" enum:"https,http" doc:"How booting machines are given their config; left out: https. Over http whoever listens on the segment reads the cluster's keys"`
	Install             Install  `json:"install,omitzero" doc:"Where Talos is installed, unless the machine says otherwise"`
	Patches             []string `json:"patches,omitempty" doc:"Talos config patches for all machines, YAML text"`
	ControlPlanePatches []string `json:"controlPlanePatches,omitempty" doc:"Patches for control planes, after those for all"`
	WorkerPatches       []string `json:"workerPatches,omitempty" doc:"Patches for workers, after those for all"`
	KernelArgs          []string `json:"kernelArgs,omitempty" doc:"Arguments appended to the netboot kernel line, one an entry"`
}

// ClusterImport is a cluster whose secrets exist already.
type ClusterImport struct {
	ClusterSpec
	New bool `json:"new,omitempty" doc:"These secrets were never used: bootstrap the cluster. Left out: it is taken to run already and is never bootstrapped from here"`
	// Secrets is never logged and never answered.
	Secrets string `json:"secrets" doc:"The secrets.yaml or controlplane.yaml that talosctl gen wrote, as text" minLength:"1" writeOnly:"true"`
}

// Cluster is a cluster as the API answers it. Its secrets are not in it.
type Cluster struct {
	ClusterSpec
	Created   time.Time `json:"created,omitzero"`
	Imported  bool      `json:"imported,omitempty" doc:"It is taken to run already, and is never bootstrapped from here"`
	Rev       uint64    `json:"rev" doc:"Revision of the record; its ETag"`
	Bootstrap Bootstrap `json:"bootstrap"`
}

// Bootstrap is where the one irreversible call of a cluster stands.
type Bootstrap struct {
	State     string    `json:"state" enum:"waiting,claimed,called,done"`
	Epoch     uint64    `json:"epoch,omitempty" doc:"Life of the cluster; a reset begins a new one"`
	Machine   string    `json:"machine,omitempty" doc:"The only machine that may be bootstrapped"`
	Old       []string  `json:"old,omitempty" doc:"Control planes of the life before a reset, that must be wiped or declared dead before anything is bootstrapped"`
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	CalledAt  time.Time `json:"calledAt,omitzero" doc:"When the call was answered with OK"`
	DoneAt    time.Time `json:"doneAt,omitzero" doc:"When etcd was seen running"`
	Attempts  int       `json:"attempts,omitempty" doc:"Calls sent, answered or not"`
	Reason    string    `json:"reason,omitempty" doc:"Where it stands or what it waits for"`
}

// Rack is a declared set of clusters and machines: the body of apply, the
// answer of export, and the file rack.yaml.
type Rack struct {
	Clusters []ClusterSpec `json:"clusters,omitempty"`
	Machines []MachineSpec `json:"machines,omitempty"`
}

// Applied is what an apply did or, on a dry run, would do.
type Applied struct {
	DryRun    bool     `json:"dryRun"`
	Created   int      `json:"created"`
	Updated   int      `json:"updated"`
	Unchanged int      `json:"unchanged"`
	Changes   []Change `json:"changes" nullable:"false" doc:"Every object of the request, in its order, clusters first"`
}

// Change is what an apply does to one object.
type Change struct {
	Kind   string        `json:"kind" enum:"cluster,machine"`
	Name   string        `json:"name"`
	Action string        `json:"action" enum:"create,update,unchanged"`
	Fields []FieldChange `json:"fields,omitempty" doc:"Fields that differ, sorted"`
}

// FieldChange is one field's old and new value; null where there is none.
type FieldChange struct {
	Field string `json:"field"`
	From  any    `json:"from"`
	To    any    `json:"to"`
}
