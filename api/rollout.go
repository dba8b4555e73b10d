package api

import "time"

// RolloutOrder asks for a rollout over a cluster.
type RolloutOrder struct {
	Mode    string `json:"mode,omitempty" enum:"auto,no-reboot,staged" doc:"auto: with a reboot where that takes one; no-reboot: stop at a machine that would need one; staged: with the next boot of each. Left out: auto"`
	Upgrade bool   `json:"upgrade,omitempty" doc:"Install the Talos that each machine would netboot, from the installer image of its config, before it is given the config"`
}

// Rollout is a rollout over a cluster.
type Rollout struct {
	Cluster  string           `json:"cluster"`
	Number   uint64           `json:"number" doc:"Counts up by one for each rollout of the cluster"`
	Mode     string           `json:"mode" enum:"auto,no-reboot,staged"`
	Upgrade  bool             `json:"upgrade,omitempty"`
	State    string           `json:"state" enum:"going,stopped,complete" doc:"stopped: by its operator, or by a failure"`
	Reason   string           `json:"reason,omitempty" doc:"What it waits for, or why it ended"`
	Started  time.Time        `json:"started"`
	Stopped  time.Time        `json:"stopped,omitzero"`
	Machines []RolloutMachine `json:"machines" nullable:"false" doc:"In their order"`
}

// RolloutMachine is one machine of a rollout.
type RolloutMachine struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`
	State     string    `json:"state" enum:"pending,claimed,done,failed" doc:"claimed: its API was asked"`
	Hash      string    `json:"hash,omitempty" doc:"SHA-256 of the config that it was to be given"`
	Image     string    `json:"image,omitempty" doc:"Installer image that it was to be upgraded with"`
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	Reason    string    `json:"reason,omitempty"`
}
