package api

import "time"

// What a reimage wipes.
const (
	WipeSystem = "system"
	WipeAll    = "all"
)

// Reimage is an order to wipe a machine and install it anew.
type Reimage struct {
	Wipe           string `json:"wipe,omitempty" enum:"system,all" doc:"system: the disk Talos is on; all: every disk, which only the machine's API can. Left out: system"`
	Graceful       *bool  `json:"graceful,omitempty" doc:"Drain the node and leave etcd first, where its API answers and destroyCluster is not given. Left out: true. A node that cannot be drained needs false"`
	DestroyCluster string `json:"destroyCluster,omitempty" doc:"The name of its cluster, as the word that the cluster may be lost with it: needed where etcd's quorum or its last control plane would go"`
	Cluster        string `json:"cluster,omitempty" doc:"Install it into this cluster; left out: where it is registered"`
	Role           string `json:"role,omitempty" enum:"controlplane,worker" doc:"Install it as this; left out: as registered"`
	Image          string `json:"image,omitempty" doc:"Talos to install, VERSION or VERSION/SCHEMATIC; left out: as registered"`
}

// ReimageCheck is what an order to reimage a machine would come to.
type ReimageCheck struct {
	Machine  string        `json:"machine"`
	OK       bool          `json:"ok" doc:"reimage-machine would take the order"`
	Problems []Detail      `json:"problems" nullable:"false" doc:"Why it would not"`
	Guard    string        `json:"guard,omitempty" doc:"Why it may go, by what was seen of its cluster's etcd"`
	Via      string        `json:"via,omitempty" enum:"api,netboot" doc:"How it would be wiped; absent: not as things are now"`
	Waits    string        `json:"waits,omitempty" doc:"What that would wait for; absent: it would be wiped at once"`
	Wipe     string        `json:"wipe" enum:"system,all" doc:"The disks that would be wiped: the one Talos is on, or every one"`
	Graceful bool          `json:"graceful" doc:"Its API is to drain the node and leave etcd first"`
	Loses    string        `json:"loses,omitempty" doc:"The cluster that may be lost with it"`
	Holds    *Membership   `json:"holds,omitempty" doc:"What is on its disk now"`
	Changes  []FieldChange `json:"changes" nullable:"false" doc:"What the order changes in how it is registered"`
	Cluster  string        `json:"cluster,omitempty" doc:"It would be installed into this one; absent: it would be held"`
	Role     string        `json:"role" enum:"controlplane,worker"`
	Image    string        `json:"image,omitempty" doc:"Boot image that would install it, version/schematic/arch"`
	Imported bool          `json:"imported" doc:"That image is there"`
	Install  Install       `json:"install,omitzero" doc:"Where it would be installed"`
}

// ReimageStatus is where the newest order to reimage a machine stands.
type ReimageStatus struct {
	Order     uint64    `json:"order" doc:"Counts up by one for each order"`
	State     string    `json:"state" enum:"waiting,wiping,done" doc:"waiting: it can be cancelled until it was taken out of etcd; wiping: the wipe was asked for; done: wiped, or cancelled"`
	Reason    string    `json:"reason,omitempty" doc:"Where it stands or what it waits for"`
	Wipe      string    `json:"wipe" enum:"system,all"`
	Graceful  bool      `json:"graceful"`
	OrderedAt time.Time `json:"orderedAt"`
	ClaimedAt time.Time `json:"claimedAt,omitzero" doc:"When the wipe was asked for"`
	Via       string    `json:"via,omitempty" enum:"api,netboot" doc:"How it was asked for"`
	DoneAt    time.Time `json:"doneAt,omitzero" doc:"When an order was last used up"`
	Attempts  int       `json:"attempts,omitempty"`
}

// ClusterReset is the confirmation to give a cluster up.
type ClusterReset struct {
	Confirm string   `json:"confirm" doc:"The name of the cluster"`
	Dead    []string `json:"dead,omitempty" doc:"Control planes that will not come back, by name: they are not waited for. Should one netboot again, it is wiped"`
	Epoch   uint64   `json:"epoch,omitempty" doc:"The life that is given up; left out: the present one. With it a reset whose answer was lost is the same reset"`
}

// ClusterResetting is what a reset began.
type ClusterResetting struct {
	Epoch    uint64   `json:"epoch" doc:"The life that begins"`
	Reimaged []string `json:"reimaged" nullable:"false" doc:"Machines that were ordered to be reimaged"`
}

// ClusterResetCheck is what a reset would come to.
type ClusterResetCheck struct {
	Epoch    uint64         `json:"epoch" doc:"The life that would be given up"`
	Count    int            `json:"count" doc:"Machines that hold it, or an earlier life"`
	Awaited  int            `json:"awaited" doc:"Control planes among them that must be seen wiped, or declared dead, before the next life is bootstrapped"`
	Machines []ResetMachine `json:"machines" nullable:"false" doc:"Those that would be wiped, by name: of all, the ones that who asks may see"`
}

// ResetMachine is a machine that a reset would wipe.
type ResetMachine struct {
	Name    string `json:"name"`
	Role    string `json:"role" enum:"controlplane,worker" doc:"What its disk makes of it"`
	Awaited bool   `json:"awaited" doc:"It must be seen wiped, or declared dead, before the next life is bootstrapped"`
}
