package api

// MachineCheck is what would come of a change of a machine.
type MachineCheck struct {
	OK       bool     `json:"ok" doc:"patch-machine would take it"`
	Problems []Detail `json:"problems" nullable:"false" doc:"Why it would not, as patch-machine would say"`
	Diff     string   `json:"diff,omitempty" doc:"Unified diff from the config that the machine would get now to the one that it would get then, secrets blotted out; absent: none that shows, or it has none"`
}

// ClusterCheck is what would come of a change of a cluster.
type ClusterCheck struct {
	OK        bool              `json:"ok" doc:"patch-cluster would take it, and each machine that was looked at would have a config"`
	Problems  []Detail          `json:"problems" nullable:"false" doc:"Why it would not, as patch-cluster would say"`
	Machines  []MachineProblems `json:"machines" nullable:"false" doc:"Its machines that would be left without a config, at most 20"`
	Checked   int               `json:"checked" doc:"Machines of it that were looked at, in order of their names"`
	Unchecked int               `json:"unchecked" doc:"Those that were not: at most 256 are looked at, and none behind the 20th with problems, or where the cluster itself has some"`
}

// MachineProblems is a machine that would be left without a config.
type MachineProblems struct {
	Machine  string   `json:"machine"`
	Problems []Detail `json:"problems" nullable:"false"`
}
