package admin

import (
	"context"
	"crypto/x509/pkix"
	"io"
	"net/netip"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// Inventory is everything the API reads and writes; inventory.Keeper is one.
// A write has happened, durably, when its method returns nil.
type Inventory interface {
	Machines
	Clusters
	Rollouts
	Images
	Events
	Discovered
	Subnets
	Archive
	Tokens
	Approvals
}

// Machines are the registered machines.
type Machines interface {
	// Machine returns the machine of a name, or of a MAC in any notation, or ErrNotFound.
	Machine(ctx context.Context, ref string) (inventory.View, error)
	// Machines lists machines by name, strictly after a name, at most limit.
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	// PutMachine writes m if the stored record is at rev, else ErrConflict. Rev 0
	// creates, or ErrExists. It allocates an address when m has none, and
	// returns the machine as it was stored.
	PutMachine(ctx context.Context, m *inventory.Machine, rev uint64) (*inventory.Machine, error)
	// CheckMachine returns what PutMachine would refuse m for at m.Rev, without
	// writing.
	CheckMachine(ctx context.Context, m *inventory.Machine) error
	// DeleteMachine removes a machine that is at rev, else ErrConflict.
	DeleteMachine(ctx context.Context, name string, rev uint64) error
	// Record folds an event into what is known of its machine, or ErrRefused.
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	// WatchViews returns a channel that receives after what may change machines, what
	// takes their names, and its end. all: any machine may have changed.
	WatchViews() (wake <-chan struct{}, take func() (machines []string, all bool), stop func())
}

// Guards keep the etcd of a cluster from what would be done to its machines.
type Guards interface {
	// MayGo says whether a machine may be wiped or forgotten, and why, in words.
	// destroy is the operator's word that its cluster may be lost.
	MayGo(ctx context.Context, v inventory.View, destroy bool) (ok bool, reason string, err error)
	// Foresee says of a machine with an order to reimage it, which need not be given
	// yet, how it would be wiped, and what that would wait for; empty: nothing.
	Foresee(ctx context.Context, v inventory.View) (via inventory.Via, waits string, err error)
	// Release is MayGo, and has the machine leave etcd then. It returns ErrRefused
	// where MayGo says no.
	Release(ctx context.Context, v inventory.View, destroy bool) error
}

// Clusters are the clusters. Their secrets go in and never come out.
type Clusters interface {
	// Clusters lists all clusters, ordered by name.
	Clusters(ctx context.Context) ([]*inventory.Cluster, error)
	// Cluster returns a cluster and where its bootstrap stands, or ErrNotFound.
	Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error)
	// CreateCluster stores a cluster together with its secrets, or ErrExists.
	CreateCluster(ctx context.Context, c *inventory.Cluster, secrets []byte) (*inventory.Cluster, error)
	// PutCluster writes c if the stored record is at rev, else ErrConflict.
	PutCluster(ctx context.Context, c *inventory.Cluster, rev uint64) (*inventory.Cluster, error)
	// DeleteCluster removes a cluster and its secrets, or ErrRefused while
	// machines belong to it.
	DeleteCluster(ctx context.Context, name string, rev uint64) error
	// ResetCluster begins the next life of a cluster, with new secrets, and returns
	// the machines of the one that is given up.
	ResetCluster(ctx context.Context, name string, epoch uint64, secrets []byte, dead []string) ([]string, error)
	// CheckReset returns the machines that ResetCluster would take, by name, without
	// taking them.
	CheckReset(ctx context.Context, name string, epoch uint64, dead []string) ([]inventory.Holder, error)
}

// Approvals are the machines that wait for a person to approve them.
type Approvals interface {
	// Approvals lists what waits.
	Approvals(ctx context.Context) ([]inventory.PendingApproval, error)
	// Approval finds what a machine asks that shows a code, or ErrNotFound.
	Approval(ctx context.Context, code string) (inventory.PendingApproval, error)
	// Decide approves or denies that, or returns ErrRefused: it was decided the other
	// way, or it is too late.
	Decide(ctx context.Context, code string, approve bool, by string) (inventory.View, error)
}

// Rollouts are the newest rollout over each cluster.
type Rollouts interface {
	// StartRollout begins one, or ErrRefused while another goes on.
	StartRollout(ctx context.Context, cluster string, mode inventory.ConfigMode, upgrade bool) (*inventory.Rollout, error)
	// StopRollout ends it, if it goes on, or ErrNotFound.
	StopRollout(ctx context.Context, cluster string) (*inventory.Rollout, error)
	// Rollout returns it, or ErrNotFound.
	Rollout(ctx context.Context, cluster string) (*inventory.Rollout, error)
}

// Images are the sets of boot assets.
type Images interface {
	// Images lists all images, ordered by id.
	Images(ctx context.Context) ([]inventory.Image, error)
	PutImage(ctx context.Context, img *inventory.Image) error
	DeleteImage(ctx context.Context, id string) error
}

// Events is the event log.
type Events interface {
	// Events returns up to limit events after an id, oldest first.
	Events(ctx context.Context, after uint64, limit int) ([]inventory.Event, error)
	// EventsTail returns the newest events, oldest first.
	EventsTail(ctx context.Context, limit int) ([]inventory.Event, error)
	// Watch returns a channel that receives after each commit, and its end.
	Watch() (<-chan struct{}, func())
}

// Logs are what machines say: kernel lines and Talos' events, by machine. Lines are
// ordered by their id.
type Logs interface {
	// Tail returns the newest lines, oldest first.
	Tail(machine string, limit int) ([]api.LogLine, error)
	// After returns all lines after an id, oldest first.
	After(machine string, id uint64) ([]api.LogLine, error)
	// Watch returns a channel that receives after lines were added, and its end.
	// It is closed when the machine is removed.
	Watch(machine string) (<-chan struct{}, func(), error)
}

// Transfers are the boot files that machines are reading right now.
type Transfers interface {
	// Transfer returns what a machine is reading, if it is.
	Transfer(machine string) (t inventory.Transfer, ok bool)
	// Transfers returns what all are reading that do, by name.
	Transfers() map[string]inventory.Transfer
}

// Discovered are the NICs seen that belong to nobody, the one seen last first.
type Discovered interface {
	Strangers(ctx context.Context) ([]inventory.Stranger, error)
	// Suggest returns how each could be registered, no two with the same name or address.
	Suggest(ctx context.Context, list []inventory.Stranger) ([]inventory.Suggestion, error)
	// AdoptionCode is what the console of one shows.
	AdoptionCode(ctx context.Context, mac inventory.MAC) (string, error)
	// StrangerByCode finds the one whose console shows a code, or ErrNotFound.
	StrangerByCode(ctx context.Context, code string) (inventory.Stranger, error)
}

// Subnets are the segments that machines boot on.
type Subnets interface {
	// Subnets are they as they are served now. The caller must not change them.
	Subnets() []inventory.Subnet
	// UsedAddresses lists what is reserved, leased or kept out of use, in order.
	UsedAddresses(ctx context.Context) ([]inventory.UsedAddress, error)
}

// Archive writes a consistent copy of everything, secrets included.
type Archive interface {
	Backup(ctx context.Context, w io.Writer) error
}

// Tokens let operators call the API over TLS.
type Tokens interface {
	// CreateToken stores a token under a new name, or ErrExists, and returns its text,
	// which is not to be had again.
	CreateToken(ctx context.Context, t inventory.Token) (*inventory.Token, string, error)
	// Tokens lists all, by name.
	Tokens(ctx context.Context) ([]inventory.Token, error)
	// RevokeToken removes one, or ErrNotFound. From its return on it is good for nothing.
	RevokeToken(ctx context.Context, name string) error
	// Authenticate returns the token of a text, or ErrToken.
	Authenticate(ctx context.Context, text string, now time.Time) (*inventory.Token, error)
	// TokenStands reports whether a token that was good is so still.
	TokenStands(ctx context.Context, t *inventory.Token, now time.Time) bool
}

// Trail keeps who did what; audit.Log is one.
type Trail interface {
	// Ready returns an error while nothing can be written.
	Ready(ctx context.Context) error
	// Append returns when the entry is on disk.
	Append(ctx context.Context, e audit.Entry) error
	// Note keeps nobody waiting.
	Note(e audit.Entry)
	// Read calls f with each line after a number, oldest first, until it returns false.
	Read(ctx context.Context, after uint64, f func(line []byte, e audit.Entry) (more bool)) error
	// ReadBack is the same with each line before a number, newest first; 0: from the newest on.
	ReadBack(ctx context.Context, before uint64, f func(line []byte, e audit.Entry) (more bool)) error
}

// CA signs client certificates; ca.CA is one.
type CA interface {
	// PEM is its own certificate.
	PEM() []byte
	// IssueClient returns a certificate and its key as PEM.
	IssueClient(subject pkix.Name, life time.Duration) ([]byte, error)
}

// Talos makes and checks what only Talos understands. An implementation records
// inventory.SecretsRead for each answer that carries a secret.
type Talos interface {
	// Defaults are for a cluster that leaves them out.
	Defaults() (talosVersion, kubernetesVersion string, pods, services []netip.Prefix)
	// NewSecrets makes the secrets bundle of a new cluster. It may take a second.
	NewSecrets(talosVersion string) ([]byte, error)
	// Import reads the secrets, and what else it tells, of a file talosctl wrote.
	Import(yaml []byte) (ImportedCluster, error)
	// Check renders and validates a machine's config, with FieldErrors for what is
	// wrong: on machine.… or cluster.… for what the operator said of either, on the
	// config's own path else. secrets nil: those stored for the cluster. m nil: a made-up machine
	// of each role, which checks the cluster by itself. m may have no address
	// yet: any will do.
	Check(ctx context.Context, c *inventory.Cluster, secrets []byte, m *inventory.Machine) error
	// Preview returns the redacted config that m would get in c, both as they might
	// become, with the errors of Check.
	Preview(ctx context.Context, c *inventory.Cluster, m *inventory.Machine) ([]byte, error)
	// CheckPatches refuses patches that no machine could take, with a FieldError on
	// patches[i]. It is for a machine without a cluster, which has no config yet.
	CheckPatches(patches []string) error
	// CheckVersion refuses a Talos that no config can be made for, with a
	// FieldError on version.
	CheckVersion(version string) error
	// Render returns the config a machine would get now, as YAML.
	Render(ctx context.Context, v inventory.View, redact bool) ([]byte, error)
	// Origins returns what Render answers, redacted, by where it comes from.
	Origins(ctx context.Context, v inventory.View) ([]api.ConfigBlock, error)
	// LastServed returns the config a machine was last given, redacted, the hash
	// of its real bytes and the time, or ErrNotFound.
	LastServed(ctx context.Context, name string) (text []byte, hash string, at time.Time, err error)
	Talosconfig(ctx context.Context, cluster string) ([]byte, error)
	Kubeconfig(ctx context.Context, cluster string) ([]byte, error)
}

// Running are the configs of machines that run, through their Talos API. What a machine
// will not do, or does not answer, is ErrRefused with the reason.
type Running interface {
	// RunningConfig asks a machine what it runs.
	RunningConfig(ctx context.Context, v inventory.View) (RunningConfig, error)
	// ApplyConfig gives it the config that it should have, once, and returns what Talos
	// said and the config's hash. dryRun changes nothing.
	ApplyConfig(ctx context.Context, v inventory.View, mode inventory.ConfigMode, dryRun bool) (said, hash string, err error)
}

// Seeds are other ways to a machine's config than its netboot, for a boot that begins
// with inventory.Seeded.
type Seeds interface {
	// Check returns why a machine cannot have a seed now, as a FieldError where an operator
	// can mend it. fetched: it would be fetched by its URLs.
	Check(ctx context.Context, v inventory.View, fetched bool) error
	// URLs are those of the machine's newest boot.
	URLs(v inventory.View) api.Seed
	// ISO makes a volume of a format for that boot, and returns the hash of the config in it.
	ISO(ctx context.Context, v inventory.View, format string) (image []byte, hash string, err error)
}

// RunningConfig is what a machine runs.
type RunningConfig struct {
	Text   []byte // redacted YAML
	Hash   string // SHA-256 of its real bytes
	Wanted string // the same of the config that it should have
}

// ImportedCluster is what a file of an existing cluster tells. Everything but
// Secrets may be empty.
type ImportedCluster struct {
	Secrets           []byte // Talos secrets bundle, YAML
	Name              string
	Endpoint          string
	TalosVersion      string
	KubernetesVersion string
	PodSubnets        []netip.Prefix
	ServiceSubnets    []netip.Prefix
}

// Blobs keeps the files of images by their content.
type Blobs interface {
	// Put reads r to its end and keeps it if its SHA-256 is want (64 lower-case
	// hexadecimal digits) and it has at most limit bytes; otherwise nothing is
	// left of it.
	Put(ctx context.Context, r io.Reader, want string, limit int64) (inventory.Blob, error)
	// Has reports whether a file of this hash and size is there.
	Has(ctx context.Context, b inventory.Blob) (bool, error)
	// CheckKernel refuses a file that is no kernel of the architecture, with a
	// FieldError on kernel.
	CheckKernel(b inventory.Blob, arch inventory.Arch) error
	// CheckInitramfs refuses a file that is no initramfs, with a FieldError on
	// initramfs.
	CheckInitramfs(b inventory.Blob) error
	// CheckUKI refuses an image whose UKI, stub or signed UKI is none, or of another
	// architecture, with a FieldError on the file that names the section.
	CheckUKI(i *inventory.Image) error
}
