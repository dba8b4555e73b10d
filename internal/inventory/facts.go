package inventory

import (
	"net/netip"
	"slices"
	"time"
)

// Arch is a processor architecture by its Go and Talos name.
type Arch string

// The architectures Talos runs on.
const (
	AMD64 Arch = "amd64"
	ARM64 Arch = "arm64"
)

// Client is which program on the machine sent a packet. All of them speak on
// the same NIC, each with a DUID of its own.
type Client string

const (
	// FirmwarePXE is UEFI PXEv6: architecture option 61, vendor class PXEClient.
	FirmwarePXE Client = "pxe"
	// FirmwareHTTP is UEFI HTTP boot: vendor class HTTPClient.
	FirmwareHTTP Client = "http"
	// FirmwareStack is the firmware's own IPv6 stack, which asks for an address
	// before the boot option does and names no architecture.
	FirmwareStack Client = "stack"
	// IPXE is iPXE, by its user class.
	IPXE Client = "ipxe"
	// OperatingSystem is Talos or any other system's client.
	OperatingSystem Client = "os"
	// MaintenanceMode is a Talos that somebody has started by hand and that waits for its
	// config, by its own API.
	MaintenanceMode Client = "maintenance"
)

// Facts is everything learnt from one registered machine. Only [Apply] changes
// it, and it accumulates: no field is cleared because a later packet lacked it.
type Facts struct {
	Machine string   `json:"machine"`
	Arch    Arch     `json:"arch,omitempty"`
	UUID    string   `json:"uuid,omitempty"`
	Serial  string   `json:"serial,omitempty"`
	DUIDs   []string `json:"duids,omitempty"` // hexadecimal, newest last, at most maxDUIDs
	// SecureBoot is what Talos said of the firmware when it last ran there.
	SecureBoot Switch    `json:"secureBoot,omitempty"`
	FirstSeen  time.Time `json:"firstSeen,omitzero"`
	LastSeen   time.Time `json:"lastSeen,omitzero"` // to the minute
	// Identified is what named the machine when it last asked for an address.
	Identified Identification `json:"identified,omitzero"`

	Install Order   `json:"install"`
	Reimage Reimage `json:"reimage,omitzero"`
	// WipeAskedAt is when it was last told to wipe its disk.
	WipeAskedAt time.Time `json:"wipeAskedAt,omitzero"`
	// Holds is what the machine's disk makes of it, as far as known: what the config
	// says that it fetched last, or the inventory when it was first found running.
	Holds Membership `json:"holds,omitzero"`
	// Boots are newest first, at most maxBoots. Each is shared with other Facts and
	// not modified: a change makes a new one.
	Boots []*Boot `json:"boots,omitempty"`

	// Stage is the machine's own last word: of its API over mTLS, or of its
	// event stream, which anyone on the link could forge and which therefore
	// only makes the picture livelier.
	Stage   Stage     `json:"stage,omitempty"`
	StageAt time.Time `json:"stageAt,omitzero"`
	// Ready is what the API said last, in stage running, since the newest boot
	// began; APIAt is when it last answered with a certificate of our CA (to
	// the minute).
	Ready bool      `json:"ready,omitempty"`
	APIAt time.Time `json:"apiAt,omitzero"`
	// ConfigHash is the SHA-256 of the config that it has, as far as is known: that
	// was served last, or applied since; hexadecimal.
	ConfigHash string    `json:"configHash,omitempty"`
	ConfigAt   time.Time `json:"configAt,omitzero"`
	// StagedHash is that of a config that it takes with its next boot; empty: none.
	StagedHash string `json:"stagedHash,omitempty"`
	// ConfigError is what Talos said of the config with ConfigErrorHash.
	ConfigError     string    `json:"configError,omitempty"`
	ConfigErrorHash string    `json:"configErrorHash,omitempty"`
	ConfigErrorAt   time.Time `json:"configErrorAt,omitzero"`

	// Maintenance is set while it waits in maintenance mode, and for a moment after it was
	// given its config there.
	Maintenance *Maintenance `json:"maintenance,omitempty"`

	// DeclinedAt is when the machine last found somebody else on its stable
	// address, to the hour.
	DeclinedAt time.Time `json:"declinedAt,omitzero"`
	// Noted is the token of the last event in here that had waited in memory.
	Noted string `json:"noted,omitempty"`

	Rev    uint64 `json:"-"`
	stored []byte // the record as it was read
}

// Identification is the evidence by which a packet was taken for a machine's.
type Identification struct {
	By     Source     `json:"by"`
	MAC    MAC        `json:"mac"`
	Client Client     `json:"client,omitempty"`
	Peer   netip.Addr `json:"peer,omitzero"`  // its address on the link
	Relay  netip.Addr `json:"relay,omitzero"` // that the packet came from
	Port   string     `json:"port,omitempty"` // where that relay heard it, in its own words
}

// Order counts a one-shot act. It is outstanding while Done < Ordered, and used
// up by evidence only; serving something uses up nothing.
type Order struct {
	Ordered   uint64    `json:"ordered"`
	OrderedAt time.Time `json:"orderedAt,omitzero"`
	Done      uint64    `json:"done"`
	DoneAt    time.Time `json:"doneAt,omitzero"`
}

// Outstanding reports whether the last order still waits for its evidence.
func (o Order) Outstanding() bool { return o.Done < o.Ordered }

// Boot is one attempt of a machine to boot over the network: from the
// firmware's Solicit, or the script where that was not seen, to its API.
// A zero time says that the step was not seen.
type Boot struct {
	Number uint64 `json:"number"` // counts up by one for each attempt
	// Token is the secret in this boot's config URL, 128 random bits.
	Token   string    `json:"token"`
	MAC     MAC       `json:"mac"`
	Client  Client    `json:"client,omitempty"`
	Started time.Time `json:"started"`
	// XIDs are the transactions that belong to this boot, newest last, at most
	// maxXIDs: a packet that is repeated or overtaken begins no new boot.
	XIDs      []uint32  `json:"xids,omitempty"`
	Offered   time.Time `json:"offered,omitzero"`
	Loader    time.Time `json:"loader,omitzero"`
	Script    time.Time `json:"script,omitzero"`
	Kernel    time.Time `json:"kernel,omitzero"`
	Initramfs time.Time `json:"initramfs,omitzero"`
	Config    time.Time `json:"config,omitzero"`
	API       time.Time `json:"api,omitzero"`
	Ready     time.Time `json:"ready,omitzero"`
	// LoaderTook, KernelTook and InitramfsTook are how long it took to read them, up to
	// the times above; 0: it is not known.
	LoaderTook    time.Duration `json:"loaderTook,omitempty"`
	KernelTook    time.Duration `json:"kernelTook,omitempty"`
	InitramfsTook time.Duration `json:"initramfsTook,omitempty"`
	// Plan is what was decided when the script, or the refusal, went out.
	Plan Action `json:"plan,omitempty"`
	// Way is how it was started, and WayReason why so.
	Way       Way    `json:"way,omitempty"`
	WayReason string `json:"wayReason,omitempty"`
	// ConfigBy is how it got its config; empty: it has none, or by its URL.
	ConfigBy Channel `json:"configBy,omitempty"`
	// Order is the install order this boot serves, 0 for none.
	Order uint64 `json:"order,omitempty"`
	// Waits is set while it is in its boot loader and asks again and again.
	Waits bool `json:"waits,omitempty"`
	// Error is why it was given no boot script although the plan was to install:
	// its config could not be made.
	Error string `json:"error,omitempty"`
	// ConfigFetches counts answered config requests; Talos retries.
	ConfigFetches int        `json:"configFetches,omitempty"`
	ConfigTo      netip.Addr `json:"configTo,omitzero"` // who fetched it first
	// Fingerprint is that of the certificate by which it was given its config over its
	// own API; empty: it was not.
	Fingerprint string `json:"fingerprint,omitempty"`
	// For is who may fetch a seed instead of the machine, such as the BMC that reads its
	// virtual media; zero: nobody.
	For netip.Addr `json:"for,omitzero"`
	// Flows are the requests to be approved, oldest first, at most maxFlows.
	Flows []Flow `json:"flows,omitempty"`
	// Alarm is why the machine's keys may be out; empty: nothing points to it.
	Alarm string `json:"alarm,omitempty"`
}

// lastSign is when the machine was last heard of before its config.
func (b *Boot) lastSign() time.Time {
	return latest(b.Started, b.Offered, b.Loader, b.Script, b.Kernel, b.Initramfs)
}

const (
	maxDUIDs = 8
	maxBoots = 8
	maxXIDs  = 8
)

// Current returns the newest boot, or nil.
func (f *Facts) Current() *Boot {
	if len(f.Boots) == 0 {
		return nil
	}
	return f.Boots[0]
}

// Alarm is why the machine's keys may be out, by the newest boot that gave cause for
// it; empty: none did.
func (f *Facts) Alarm() string {
	for _, b := range f.Boots {
		if b.Alarm != "" {
			return b.Alarm
		}
	}
	return ""
}

// Clone returns a copy that may be changed.
func (f Facts) Clone() Facts {
	f.DUIDs = slices.Clone(f.DUIDs)
	f.Boots = slices.Clone(f.Boots)
	return f
}

// change returns the i-th boot, to be modified.
func (f *Facts) change(i int) *Boot {
	b := *f.Boots[i]
	b.XIDs, b.Flows = slices.Clone(b.XIDs), slices.Clone(b.Flows)
	f.Boots[i] = &b
	return &b
}

// ConfigMode is when and for how long a config that is applied to a running machine
// takes effect, in Talos' words.
type ConfigMode string

// The modes.
const (
	ConfigAuto     ConfigMode = "auto"      // at once, with a reboot where that takes one
	ConfigNoReboot ConfigMode = "no-reboot" // at once, or not at all
	ConfigStaged   ConfigMode = "staged"    // with its next boot
	ConfigTry      ConfigMode = "try"       // at once, and taken back after a minute
)

// Stage is Talos' MachineStatus stage, in lower case
// (pkg/machinery/resources/runtime/machinestage.go).
type Stage string

// The stages of Talos 1.13.
const (
	StageUnknown      Stage = "unknown"
	StageBooting      Stage = "booting"
	StageInstalling   Stage = "installing"
	StageMaintenance  Stage = "maintenance"
	StageRunning      Stage = "running"
	StageRebooting    Stage = "rebooting"
	StageShuttingDown Stage = "shutting down"
	StageResetting    Stage = "resetting"
	StageUpgrading    Stage = "upgrading"
)

// Stranger is a NIC that was seen and belongs to no registered machine.
type Stranger struct {
	MAC    MAC        `json:"mac"`
	UUID   string     `json:"uuid,omitempty"`
	Arch   Arch       `json:"arch,omitempty"`
	Client Client     `json:"client,omitempty"`
	Relay  netip.Addr `json:"relay,omitzero"`
	Port   string     `json:"port,omitempty"` // of the relay, in its own words
	Subnet string     `json:"subnet,omitempty"`
	// Address and Fingerprint are those of its API, if it waits in maintenance mode (see
	// [Maintenance]).
	Address     netip.Addr `json:"address,omitzero"`
	Fingerprint string     `json:"fingerprint,omitempty"`
	FirstSeen   time.Time  `json:"firstSeen"`
	LastSeen    time.Time  `json:"lastSeen"` // to the minute

	Rev uint64 `json:"-"`
}

// Image is one set of boot assets: a Talos version and schematic for one
// architecture. The bytes lie in the image folder, named by their hash.
type Image struct {
	Version   string `json:"version"`             // v1.13.6
	Schematic string `json:"schematic,omitempty"` // empty: plain Talos
	Arch      Arch   `json:"arch"`
	Kernel    Blob   `json:"kernel"`
	Initramfs Blob   `json:"initramfs"`
	// UKI is the unsigned unified kernel image that machines' own are made of; Stub is
	// systemd's UEFI stub, which makes one of kernel and initramfs. Signed is the UKI that
	// the vendor signed. Each may be missing.
	UKI     Blob      `json:"uki,omitzero"`
	Stub    Blob      `json:"stub,omitzero"`
	Signed  Blob      `json:"signed,omitzero"`
	Created time.Time `json:"created,omitzero"`

	Rev uint64 `json:"-"`
}

// ImageFile is a file of an image by what it is there.
type ImageFile struct {
	Name string // as the field of the image is called in JSON
	Blob Blob   // with no SHA256: the image has none
}

// Files are the files that an image can have, in their order.
func (i *Image) Files() []ImageFile {
	return []ImageFile{{"kernel", i.Kernel}, {"initramfs", i.Initramfs}, {"uki", i.UKI}, {"stub", i.Stub}, {"signed", i.Signed}}
}

// Blob is a file by content.
type Blob struct {
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
	Size   int64  `json:"size"`   // bytes
}

// ImageID is the key of an image: "v1.13.6/default/amd64".
func ImageID(version, schematic string, arch Arch) string {
	if schematic == "" {
		schematic = "default"
	}
	return version + "/" + schematic + "/" + string(arch)
}

// ID is the image's key.
func (i *Image) ID() string { return ImageID(i.Version, i.Schematic, i.Arch) }

// Rendered is what a machine's config looked like, redacted, newest first: the
// one prepared last and the one before.
type Rendered struct {
	Machine  string            `json:"machine"`
	Versions []RenderedVersion `json:"versions"`

	Rev uint64 `json:"-"`
}

// RenderedVersion is one redacted config and the hash of its unredacted bytes.
type RenderedVersion struct {
	Hash string    `json:"hash"`
	At   time.Time `json:"at"`
	Text []byte    `json:"text"`
}
