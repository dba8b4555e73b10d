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
