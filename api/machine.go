package api

import "time"

// MachineSpec is what an operator says of a machine.
type MachineSpec struct {
	Name       string            `json:"name,omitempty" doc:"Unique name and host name, a DNS label" example:"cp-1"`
	MACs       []string          `json:"macs" doc:"NICs it may boot from, in any notation; the first carries its address in Talos" example:"[\"52:54:00:12:34:56\"]"`
	Cluster    string            `json:"cluster,omitempty" doc:"Its cluster; a machine without one is known but held"`
	Role       string            `json:"role" enum:"controlplane,worker" doc:"What it is in its cluster"`
	Address    string            `json:"address,omitempty" doc:"Its one stable IPv6 address; left out: allocated from its subnet, and kept" example:"2001:db8::11"`
	Subnet     string            `json:"subnet,omitempty" doc:"Subnet its address is allocated from; needed only without an address and with several subnets"`
	Install    Install           `json:"install,omitzero" doc:"Where Talos is installed; left out: as its cluster says"`
	Image      string            `json:"image,omitempty" doc:"Talos that is netbooted, VERSION or VERSION/SCHEMATIC; left out: its cluster's" example:"v1.13.6"`
	Approval   string            `json:"approval,omitempty" enum:"none,required" doc:"Does a person approve it before it is given its config? left out: as its cluster says"`
	Boot       string            `json:"boot,omitempty" enum:"auto,uki,ipxe" doc:"How it is started over the network, at first: by its own UKI, or by iPXE; left out: auto, as its firmware can"`
	SecureBoot string            `json:"secureBoot,omitempty" enum:"on,off" doc:"Does its firmware start signed programs only? left out: as Talos says, once it has run there"`
	Addressing string            `json:"addressing,omitempty" enum:"static,dhcpv6" doc:"How the installed system gets its address; left out: as its cluster says"`
	Patches    []string          `json:"patches,omitempty" doc:"Talos config patches as YAML text, applied after the cluster's and the role's"`
	KernelArgs []string          `json:"kernelArgs,omitempty" doc:"Arguments appended to the netboot kernel line, one an entry"`
	Labels     map[string]string `json:"labels,omitempty" doc:"For people and for filters"`
}

// Install says where Talos is installed.
type Install struct {
	Disk         string            `json:"disk,omitempty" doc:"Device path; not together with diskSelector" example:"/dev/sda"`
	DiskSelector map[string]string `json:"diskSelector,omitempty" doc:"Talos' InstallDiskSelector: size, model, serial, type, busPath, ..."`
	Image        string            `json:"image,omitempty" doc:"Installer image"`
}

// IsZero reports whether nothing is set.
func (i Install) IsZero() bool { return i.Disk == "" && len(i.DiskSelector) == 0 && i.Image == "" }

// Machine is a machine as the API answers it: what was said of it, and what it
// came to.
type Machine struct {
	MachineSpec
	Created  time.Time `json:"created,omitzero"`
	Rev      uint64    `json:"rev" doc:"Revision of the record; its ETag"`
	Phase    State     `json:"phase"`
	Progress *Progress `json:"progress,omitempty" doc:"The boot file that it is reading over HTTP right now"`
	Plan     Plan      `json:"plan"`
	Facts    Facts     `json:"facts"`
}

// Progress is a boot file on its way to a machine.
type Progress struct {
	Step  string    `json:"step" enum:"kernel,initramfs"`
	Sent  int64     `json:"sent" doc:"Bytes of it that were sent, in steps of up to 512 KB; of a range, from the start of the file"`
	Size  int64     `json:"size" doc:"Bytes of the whole file"`
	Since time.Time `json:"since" doc:"When it asked for it"`
}

// State is where a machine is on its way, worked out when asked.
type State struct {
	Phase     string    `json:"phase" enum:"discovered,registered,offered,loading,configuring,installing,booting,ready,reimaging,stalled,failed"`
	Since     time.Time `json:"since,omitzero"`
	Reason    string    `json:"reason,omitempty" doc:"What it waits for, or why it failed"`
	StalledIn string    `json:"stalledIn,omitempty" doc:"Phase a stalled machine is stuck in"`
}

// Plan is what the machine will be told when it boots.
type Plan struct {
	Action   string `json:"action" enum:"hold,install,wipe,disk"`
	Reason   string `json:"reason"`
	Image    string `json:"image,omitempty" doc:"Boot image that it would netboot, version/schematic/arch; absent: it has no cluster" example:"v1.13.6/default/amd64"`
	Imported bool   `json:"imported,omitempty" doc:"That image is there"`
	// Way and WayReason are there when it netboots.
	Way       string `json:"way,omitempty" enum:"ipxe,uki,signed" doc:"How it would be started; absent, though it is to netboot: by no way, and the reason says why"`
	WayReason string `json:"wayReason,omitempty" doc:"Why so"`
}

// Facts is what was learnt from the machine.
type Facts struct {
	Arch        string         `json:"arch,omitempty"`
	UUID        string         `json:"uuid,omitempty"`
	Serial      string         `json:"serial,omitempty"`
	SecureBoot  string         `json:"secureBoot,omitempty" enum:"on,off" doc:"What Talos said of its firmware"`
	FirstSeen   time.Time      `json:"firstSeen,omitzero"`
	LastSeen    time.Time      `json:"lastSeen,omitzero" doc:"To the minute"`
	Identified  *Identified    `json:"identified,omitempty" doc:"By what it was known when it last asked for an address"`
	DeclinedAt  time.Time      `json:"declinedAt,omitzero" doc:"When it last found somebody else on its address, to the hour"`
	Stage       string         `json:"stage,omitempty" doc:"Talos' machine stage, in its own words"`
	Ready       bool           `json:"ready"`
	APIAt       time.Time      `json:"apiAt,omitzero" doc:"When its Talos API last answered with a certificate of its cluster"`
	ConfigError string         `json:"configError,omitempty" doc:"What Talos said of the config it was last given"`
	ConfigHash  string         `json:"configHash,omitempty" doc:"SHA-256 of the config that it has, as far as is known: last served, or applied since"`
	ConfigAt    time.Time      `json:"configAt,omitzero"`
	StagedHash  string         `json:"stagedHash,omitempty" doc:"SHA-256 of a config that it takes with its next boot"`
	Installs    Order          `json:"installs"`
	Maintenance *Maintenance   `json:"maintenance,omitempty" doc:"It waits in Talos' maintenance mode to be given its config"`
	Holds       *Membership    `json:"holds,omitempty" doc:"What its disk makes of it: what the config says that it fetched last"`
	Reimage     *ReimageStatus `json:"reimage,omitempty" doc:"The newest order to reimage it"`
	Boot        *Boot          `json:"boot,omitempty" doc:"Its newest boot"`
	Alarm       string         `json:"alarm,omitempty" doc:"Why its keys may be out, by one of its last boots"`
}

// Maintenance is a Talos that waits to be given a config over its API. Nothing vouches for it
// but who reads its fingerprint off its console.
type Maintenance struct {
	Address     string    `json:"address" doc:"Where its API answers"`
	Fingerprint string    `json:"fingerprint" doc:"SHA-256 of its certificate's public key in base64, as its console prints it" example:"jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs="`
	Since       time.Time `json:"since"`
	Reason      string    `json:"reason,omitempty" doc:"Why it has no config yet"`
	Confirmed   time.Time `json:"confirmed,omitzero" doc:"When a person gave the fingerprint that its console prints"`
	By          string    `json:"by,omitempty" doc:"Who that was"`
}

// Confirmation is what a person read off the console of a machine.
type Confirmation struct {
	Fingerprint string `json:"fingerprint" doc:"As the console prints it" example:"jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs="`
}

// Membership is what a machine is in a life of a cluster.
type Membership struct {
	Cluster string `json:"cluster"`
	Role    string `json:"role"`
	Epoch   uint64 `json:"epoch" doc:"Life of the cluster; a reset begins a new one"`
}

// Identified is the evidence by which a packet was taken for a machine's.
type Identified struct {
	By     string `json:"by" doc:"What gave the MAC"`
	MAC    string `json:"mac"`
	Client string `json:"client,omitempty" doc:"Program that asked: pxe, http, stack, ipxe or os"`
	Peer   string `json:"peer,omitempty" doc:"Its address on the link"`
	Relay  string `json:"relay,omitempty" doc:"Relay that the packet came from"`
	Port   string `json:"port,omitempty" doc:"Where the relay heard it, in its own words: interface-id, remote-id"`
}

// Order counts a one-shot act; it is outstanding while done is less than ordered.
type Order struct {
	Ordered uint64 `json:"ordered"`
	Done    uint64 `json:"done"`
}

// Boot is one attempt to boot over the network.
type Boot struct {
	Number        uint64    `json:"number" doc:"Counts up by one for each attempt"`
	MAC           string    `json:"mac"`
	Client        string    `json:"client,omitempty" doc:"What began it: pxe, http, stack, ipxe, os are programs; seed: an operator"`
	Plan          string    `json:"plan,omitempty" doc:"What was decided"`
	Way           string    `json:"way,omitempty" enum:"ipxe,uki,signed" doc:"How it was started"`
	WayReason     string    `json:"wayReason,omitempty" doc:"Why so"`
	ConfigBy      string    `json:"configBy,omitempty" enum:"url,api,nocloud,iso" doc:"How it got its config"`
	Order         uint64    `json:"order,omitempty" doc:"Install order it serves"`
	Started       time.Time `json:"started"`
	Seconds       float64   `json:"seconds" doc:"From its start to the last step seen"`
	Steps         []Step    `json:"steps" nullable:"false" doc:"Steps that were seen, in their order"`
	ConfigFetches int       `json:"configFetches,omitempty" doc:"Answered config requests; Talos retries"`
	ConfigTo      string    `json:"configTo,omitempty" doc:"Address that fetched the config first"`
	For           string    `json:"for,omitempty" doc:"Address that may fetch its seed instead of the machine"`
	Alarm         string    `json:"alarm,omitempty" doc:"Why the machine's keys may be out"`
}

// Step is one step of a boot.
type Step struct {
	Step    string    `json:"step" enum:"offered,loader,script,kernel,initramfs,config,api,ready"`
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds" doc:"Since the boot began"`
}

// Diff is how a machine's config would differ from the one it was last given, or runs.
type Diff struct {
	Machine  string    `json:"machine"`
	Served   string    `json:"served,omitempty" doc:"SHA-256 of the config last served; absent if none was"`
	ServedAt time.Time `json:"servedAt,omitzero"`
	Running  string    `json:"running,omitempty" doc:"SHA-256 of the config that it runs; present if it was asked"`
	Wanted   string    `json:"wanted,omitempty" doc:"SHA-256 of the config that it would get now; present if it was asked"`
	Diff     string    `json:"diff" doc:"Unified diff to the config that it would get now, secrets blotted out; empty: no difference that shows"`
}

// ConfigOrigins is the config that a machine would get now, secrets blotted out, and
// where each part of it comes from.
type ConfigOrigins struct {
	Blocks []ConfigBlock `json:"blocks" nullable:"false" doc:"The whole config in order: joined, their texts are what get-machine-config answers"`
}

// ConfigBlock is consecutive lines of a config that come from the same place.
type ConfigBlock struct {
	Text   string `json:"text" doc:"Whole lines, each with its newline"`
	Origin string `json:"origin" enum:"base,cluster,role,machine" doc:"base: made here, of the inventory and Talos' defaults; cluster: a patch of the cluster for all machines; role: one for the machine's role; machine: one of its own. The last that changed a value counts"`
	Patch  *int   `json:"patch,omitempty" minimum:"0" doc:"Index of the patch in its list; absent with base"`
}

// ConfigApply asks to give a running machine the config that it would get now.
type ConfigApply struct {
	Mode   string `json:"mode,omitempty" enum:"auto,no-reboot,staged,try" doc:"auto: at once, with a reboot where that takes one; no-reboot: at once, or not at all; staged: with its next boot; try: at once, and taken back after a minute. Left out: auto"`
	DryRun bool   `json:"dryRun,omitempty" doc:"Say what would happen, and change nothing"`
}

// ConfigApplied is what came of it.
type ConfigApplied struct {
	Machine string `json:"machine"`
	Hash    string `json:"hash" doc:"SHA-256 of the config"`
	DryRun  bool   `json:"dryRun,omitempty"`
	Said    string `json:"said" doc:"Talos' own words"`
}

// Adoption registers an unregistered machine, by the code that its console shows.
type Adoption struct {
	Name    string            `json:"name" doc:"Name of the machine, and its host name: a DNS label" example:"w-7"`
	Role    string            `json:"role" enum:"controlplane,worker"`
	Cluster string            `json:"cluster,omitempty" doc:"Its cluster; left out: it is known and held"`
	Address string            `json:"address,omitempty" doc:"Its one stable IPv6 address; left out: allocated"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// Stranger is a NIC that was seen and belongs to no registered machine.
type Stranger struct {
	Code        string    `json:"code,omitempty" doc:"What its console shows, where it waits to be adopted; absent for who may not adopt it"`
	MAC         string    `json:"mac"`
	UUID        string    `json:"uuid,omitempty"`
	Arch        string    `json:"arch,omitempty"`
	Client      string    `json:"client,omitempty"`
	Relay       string    `json:"relay,omitempty"`
	Port        string    `json:"port,omitempty" doc:"Where the relay heard it, in its own words: interface-id, remote-id"`
	Subnet      string    `json:"subnet,omitempty"`
	Address     string    `json:"address,omitempty" doc:"Where its API answers, if it waits in Talos' maintenance mode"`
	Fingerprint string    `json:"fingerprint,omitempty" doc:"Of its certificate there, as its console prints it"`
	FirstSeen   time.Time `json:"firstSeen"`
	LastSeen    time.Time `json:"lastSeen" doc:"To the minute"`

	Suggestion Suggestion `json:"suggestion,omitzero" doc:"How it could be registered; no two of a list have the same name or address. Absent after the first 64 of a list: ask for the one by its mac"`
}

// Suggestion is how a discovered NIC could be registered. Nothing of it is reserved.
type Suggestion struct {
	Name    string `json:"name" doc:"The relay's port if that is such as rack3-u7; else the next of the numbered names that most machines have" example:"w-7"`
	Subnet  string `json:"subnet,omitempty" doc:"Where it was seen, if there is such a subnet"`
	Address string `json:"address,omitempty" doc:"What registering it would allocate; absent: there is nothing to allocate, or one before it in the list found its subnet full"`
}
