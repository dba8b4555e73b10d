package api

import "time"

// Image is one set of boot assets.
type Image struct {
	ID        string    `json:"id" doc:"version/schematic/arch" example:"v1.13.6/default/amd64"`
	Version   string    `json:"version"`
	Schematic string    `json:"schematic,omitempty" doc:"Absent: plain Talos"`
	Arch      string    `json:"arch"`
	Kernel    Blob      `json:"kernel"`
	Initramfs Blob      `json:"initramfs"`
	UKI       *Blob     `json:"uki,omitempty" doc:"Unsigned UKI that machines' own are made of"`
	Stub      *Blob     `json:"stub,omitempty" doc:"UEFI stub that machines' UKIs are made with, of kernel and initramfs"`
	Signed    *Blob     `json:"signed,omitempty" doc:"UKI that the vendor signed"`
	Created   time.Time `json:"created,omitzero"`
	Use       ImageUse  `json:"use" doc:"Who would netboot it, as far as they are of who asks"`
}

// ImageUse is who would netboot an image.
type ImageUse struct {
	Clusters     int      `json:"clusters" doc:"Clusters of its version and schematic"`
	ClusterNames []string `json:"clusterNames,omitempty" doc:"The first 10 of them, by name"`
	Machines     int      `json:"machines" doc:"Machines that would netboot it, if they did now"`
	MachineNames []string `json:"machineNames,omitempty" doc:"The first 10 of them, by name"`
}

// Images are all images.
type Images struct {
	Items   []Image        `json:"items" nullable:"false"`
	Missing []MissingImage `json:"missing,omitempty" doc:"What machines would netboot and is not here, by id; they are held. At most 100"`
}

// MissingImage is one that machines wait for.
type MissingImage struct {
	ID  string   `json:"id" doc:"version/schematic/arch" example:"v1.13.6/default/amd64"`
	Use ImageUse `json:"use"`
}

// ImageSpec names the blobs of an image; put them first.
type ImageSpec struct {
	Kernel    Blob  `json:"kernel"`
	Initramfs Blob  `json:"initramfs"`
	UKI       *Blob `json:"uki,omitempty" doc:"The unsigned UKI of the same kernel and initramfs, such as metal-amd64-uki.efi: firmware that boots over HTTP is given it with each machine's own kernel line"`
	Stub      *Blob `json:"stub,omitempty" doc:"Without a UKI: systemd's UEFI stub, such as linuxx64.efi.stub, to make one with"`
	Signed    *Blob `json:"signed,omitempty" doc:"The UKI that the vendor signed, such as metal-amd64-secureboot-uki.efi, for machines with Secure Boot on where there is no key to sign with"`
}

// Blob is a file by its content.
type Blob struct {
	SHA256 string `json:"sha256" pattern:"^[0-9a-f]{64}$" patternDescription:"64 lower-case hexadecimal digits"`
	Size   int64  `json:"size" minimum:"1" doc:"Bytes"`
}

// Event is something that happened.
type Event struct {
	ID      uint64    `json:"id"`
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	MAC     string    `json:"mac,omitempty"`
	Machine string    `json:"machine,omitempty"`
	Cluster string    `json:"cluster,omitempty"`
	Boot    uint64    `json:"boot,omitempty" doc:"Number of the boot"`
	Message string    `json:"message,omitempty"`
	Client  string    `json:"client,omitempty"`
	Arch    string    `json:"arch,omitempty"`
	Source  string    `json:"source,omitempty" doc:"Evidence that gave the MAC"`
	UUID    string    `json:"uuid,omitempty"`
	Serial  string    `json:"serial,omitempty"`
	Peer    string    `json:"peer,omitempty"`
	Relay   string    `json:"relay,omitempty"`
	Port    string    `json:"port,omitempty" doc:"Where the relay heard it, in its own words"`
	Subnet  string    `json:"subnet,omitempty"`
	Plan    string    `json:"plan,omitempty"`
	Hash    string    `json:"hash,omitempty"`
	Stage   string    `json:"stage,omitempty"`
	Ready   bool      `json:"ready,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// LogLine is something that a machine said, without its secrets.
type LogLine struct {
	ID       uint64    `json:"id" doc:"Counts the lines of the machine"`
	Time     time.Time `json:"time" doc:"By the machine's own clock"`
	Kind     string    `json:"kind" enum:"kernel,event" doc:"Kernel log, which holds Talos' own, or Talos' event stream"`
	Boot     uint64    `json:"boot,omitempty" doc:"Counts the starts of a kernel that were heard of"`
	Seq      uint64    `json:"seq,omitempty" doc:"Number of the kernel's line in this boot"`
	Uptime   float64   `json:"uptime,omitempty" doc:"Seconds since the kernel's start"`
	Facility string    `json:"facility,omitempty"`
	Level    string    `json:"level,omitempty"`
	Text     string    `json:"text"`
}

// Status is the rack at a glance.
type Status struct {
	Version    string            `json:"version"`
	Machines   int               `json:"machines"`
	Phases     map[string]int    `json:"phases" doc:"Machines by phase"`
	Clusters   []ClusterStatus   `json:"clusters" nullable:"false"`
	Discovered int               `json:"discovered" doc:"NICs seen that belong to no machine"`
	Images     int               `json:"images"`
	Dropped    map[string]uint64 `json:"dropped,omitempty" doc:"DHCPv6 packets that got no answer since the start, by reason"`
	Attention  []Attention       `json:"attention" nullable:"false" doc:"Machines that stalled, failed or gave alarm, at most 100"`
}

// ClusterStatus is one cluster at a glance.
type ClusterStatus struct {
	Name      string    `json:"name"`
	Machines  int       `json:"machines"`
	Ready     int       `json:"ready"`
	Bootstrap Bootstrap `json:"bootstrap"`
}

// Attention is a machine somebody should look at.
type Attention struct {
	Machine string `json:"machine"`
	Phase   State  `json:"phase"`
	Alarm   string `json:"alarm,omitempty" doc:"Why its keys may be out"`
}

// Version is what answers.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	API     string `json:"api" enum:"v1"`
}
