package inventory

import (
	"net/netip"
	"time"
)

// Kind names what happened.
type Kind string

// What a machine did, in the order of a boot.
const (
	Solicited       Kind = "solicited"        // asked for an address
	Offered         Kind = "offered"          // was answered with a boot URL, or with none on purpose
	LoaderServed    Kind = "loader-served"    // read the boot loader to its end
	ScriptServed    Kind = "script-served"    // was given a boot script
	KernelServed    Kind = "kernel-served"    // read the kernel to its end
	InitramfsServed Kind = "initramfs-served" // read the initramfs to its end
	UKIServed       Kind = "uki-served"       // read its UKI, which is kernel and initramfs, to its end
	Seeded          Kind = "seeded"           // an operator asked for its config in another way than by its netboot
	ScriptRefused   Kind = "script-refused"   // somebody else asked for its boot script
	ApprovalAsked   Kind = "approval-asked"   // waits for a person to approve it
	ConfigServed    Kind = "config-served"    // was given its machine config
	ConfigDeclined  Kind = "config-declined"  // did not take the config that its API was given
	ConfigRefused   Kind = "config-refused"   // asked for a config it may not have
	TokenStolen     Kind = "token-stolen"     // the token of its boot was shown from an address of somebody else
	Reported        Kind = "reported"         // said something on its event stream
	APIAnswered     Kind = "api-answered"     // its API answered with a certificate of our CA
	Declined        Kind = "declined"         // found its address in use
	MaintenanceSeen Kind = "maintenance-seen" // waits in maintenance mode, and why it has no config
	MaintenanceGone Kind = "maintenance-gone" // does not answer there any more
)

// observed reports whether an event only tells what a machine was seen doing: no
// order, claim, token or address rests on it. Should a crash lose the last second
// of these, a machine has to be seen again, and nothing is done twice.
//
// That a config was fetched is evidence that uses up an order, so it is durable before
// the answer; but not for a machine's first install, which its API alone proves (see
// installed), and as what its script made it known already.
func (e Event) observed(v *View) bool {
	switch e.Kind {
	case Solicited, Offered, LoaderServed, KernelServed, InitramfsServed, UKIServed, Reported, MaintenanceSeen, MaintenanceGone:
		return true
	case ConfigServed:
		if e.ConfigBy == ChannelAPI {
			return false // nothing else says that it was given one in this boot
		}
		f := &v.Facts
		known := v.Cluster != nil && f.Holds.Cluster == v.Cluster.Name && f.Holds.Epoch == v.Cluster.Epoch && f.Holds.Role == v.Machine.Role
		return f.Install.Ordered <= 1 && !f.Reimage.Outstanding() && known
	}
	return false
}

// What the bootstrap of a cluster went through.
const (
	BootstrapClaimed  Kind = "bootstrap-claimed"  // one machine was chosen, durably
	BootstrapSent     Kind = "bootstrap-sent"     // the call is about to leave
	BootstrapAccepted Kind = "bootstrap-accepted" // answered OK or AlreadyExists
	BootstrapDeclined Kind = "bootstrap-declined" // answered with a definite no
	BootstrapWaits    Kind = "bootstrap-waits"    // what it waits for changed
	BootstrapDone     Kind = "bootstrap-done"     // etcd was seen running
)

// What became of the config of a machine that runs.
const (
	ConfigApplied Kind = "config-applied" // its API took the config of Hash, in Mode
)

// What became of a reimage.
const (
	ReimageOrdered   Kind = "reimage-ordered"
	ReimageCancelled Kind = "reimage-cancelled"
	ReimageWaits     Kind = "reimage-waits"   // what it waits for changed
	ReimageLeaves    Kind = "reimage-leaves"  // is about to be taken out of etcd, durably
	ReimageCleared   Kind = "reimage-cleared" // nothing is left that the machine must not be taken from
	WipeClaimed      Kind = "wipe-claimed"    // its API is about to be asked, durably
	WipeAccepted     Kind = "wipe-accepted"   // answered OK
	WipeDeclined     Kind = "wipe-declined"   // answered with a definite no
)

// What became of a rollout over a cluster.
const (
	RolloutStarted         Kind = "rollout-started"
	RolloutMachineClaimed  Kind = "rollout-claimed"  // its API is about to be asked, durably
	RolloutMachineAnswered Kind = "rollout-answered" // with these words, or not at all
	RolloutMachineAgain    Kind = "rollout-again"    // nothing has happened, or the next thing is to
	RolloutMachineDone     Kind = "rollout-done"
	RolloutMachineFailed   Kind = "rollout-failed"
	RolloutWaits           Kind = "rollout-waits" // what it waits for changed
	RolloutEnded           Kind = "rollout-ended"
)

// What an operator did. These are for the log; the records are the truth.
const (
	Registered     Kind = "registered"
	Changed        Kind = "changed"
	Removed        Kind = "removed"
	ClusterCreated Kind = "cluster-created"
	ClusterChanged Kind = "cluster-changed"
	ClusterRemoved Kind = "cluster-removed"
	ClusterReset   Kind = "cluster-reset"
	ImageAdded     Kind = "image-added"
	ImageRemoved   Kind = "image-removed"
	ApprovalGiven  Kind = "approval-given"
	ApprovalDenied Kind = "approval-denied"
	// MaintenanceConfirmed: the console of a machine in maintenance mode was read.
	MaintenanceConfirmed Kind = "maintenance-confirmed"
	AlarmSeen            Kind = "alarm-seen"   // somebody has looked into the alarms of a machine
	SecretsRead          Kind = "secrets-read" // talosconfig, kubeconfig or an unredacted config left
)

// Event is something that happened, as an adapter saw it. It is folded into
// facts by [Apply] and, when it changed any, kept in the event log. Fields that
// do not apply stay zero.
type Event struct {
	ID      uint64    `json:"id,omitempty"` // position in the log, given by the store
	Time    time.Time `json:"time"`
	Kind    Kind      `json:"kind"`
	MAC     MAC       `json:"mac,omitempty"`
	Machine string    `json:"machine,omitempty"`
	Cluster string    `json:"cluster,omitempty"`
	Boot    uint64    `json:"boot,omitempty"`    // number of the boot attempt
	Message string    `json:"message,omitempty"` // one line for a person

	Client Client     `json:"client,omitempty"`
	Arch   Arch       `json:"arch,omitempty"`
	Source Source     `json:"source,omitempty"` // which evidence gave the MAC
	UUID   string     `json:"uuid,omitempty"`
	Serial string     `json:"serial,omitempty"`
	DUID   string     `json:"duid,omitempty"`
	XID    uint32     `json:"xid,omitempty"`
	Peer   netip.Addr `json:"peer,omitzero"`
	Relay  netip.Addr `json:"relay,omitzero"`
	Port   string     `json:"port,omitempty"` // of the relay: its interface-id and remote-id
	Subnet string     `json:"subnet,omitempty"`
	Plan   Action     `json:"plan,omitempty"`
	Way    Way        `json:"way,omitempty"`
	// WayReason is why it is started so.
	WayReason string  `json:"wayReason,omitempty"`
	ConfigBy  Channel `json:"configBy,omitempty"`
	// Fingerprint is that of a certificate in maintenance mode; see [Maintenance].
	Fingerprint string `json:"fingerprint,omitempty"`
	// SecureBoot is what Talos says of the firmware.
	SecureBoot Switch     `json:"secureBoot,omitempty"`
	Hash       string     `json:"hash,omitempty"`
	Image      string     `json:"image,omitempty"` // installer of an upgrade
	Mode       ConfigMode `json:"mode,omitempty"`  // that the config was applied in
	Stage      Stage      `json:"stage,omitempty"`
	Ready      bool       `json:"ready,omitempty"`
	// Took is how long the machine took to read a file to its end.
	Took  time.Duration `json:"took,omitempty"`
	Error string        `json:"error,omitempty"`
	Epoch uint64        `json:"epoch,omitempty"`

	// Left is the cluster that the machine belonged to until it was removed, or changed to
	// another.
	Left string `json:"left,omitempty"`

	AllDisks bool `json:"allDisks,omitempty"`
	Graceful bool `json:"graceful,omitempty"`
	Destroy  bool `json:"destroy,omitempty"`
	Refused  bool `json:"refused,omitempty"`
	Wait     bool `json:"wait,omitempty"`

	// For may fetch a seed instead of the machine.
	For netip.Addr `json:"for,omitzero"`

	// Code is the user code of a device authorization, By who decided on it. Device and
	// Access are described at [Flow].
	Code    string    `json:"code,omitempty"`
	By      string    `json:"by,omitempty"`
	Device  string    `json:"-"`
	Access  string    `json:"-"`
	Expires time.Time `json:"-"`

	// Holds is what a config makes of its machine. The Keeper fills it in.
	Holds Membership `json:"holds,omitzero"`
	// stale is set for a config of another cluster, or another life of it, than the
	// machine belongs to by now.
	stale bool
	// own is set when Peer is an address of the machine for good.
	own bool
	// Asked is when the question left that the API answered; zero: unknown.
	Asked time.Time `json:"-"`

	// Within are the clusters that the machine must belong to, or there is none of its
	// name (ErrNotFound); empty: any.
	Within []string `json:"-"`

	// Token is a fresh random token for the boot this event may begin. The
	// Keeper fills it in, so that Apply stays pure; it is never logged.
	Token string `json:"-"`
}
