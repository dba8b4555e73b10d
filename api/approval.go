package api

import "time"

// Approval is a machine that asks a person to approve it before it is given its config.
type Approval struct {
	Machine string    `json:"machine"`
	Cluster string    `json:"cluster,omitempty"`
	Boot    uint64    `json:"boot" doc:"Number of the boot"`
	Peer    string    `json:"peer" doc:"Address that asks"`
	Asked   time.Time `json:"asked"`
	Expires time.Time `json:"expires" doc:"Until then the code is good; the machine shows another afterwards"`
	Alarm   string    `json:"alarm,omitempty" doc:"Why it may not be the machine that asks"`
	State   string    `json:"state" enum:"waiting,approved,denied"`
	By      string    `json:"by,omitempty" doc:"Who decided"`
}

// Decision is what a person says of a machine whose code he read off its console.
type Decision struct {
	Approve bool `json:"approve" doc:"true: give it its config; false: do not"`
}
