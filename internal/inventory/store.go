package inventory

import (
	"context"
	"io"
)

// Bucket groups the records of one type.
type Bucket string

// The buckets. Machines, clusters and images are by name; the indexes map a
// MAC, an address or a DUID to its owner, and make it unique.
const (
	BucketMachines   Bucket = "machines"   // name → Machine
	BucketMACs       Bucket = "macs"       // MAC → machine name
	BucketAddresses  Bucket = "addresses"  // stable address → machine name
	BucketDUIDs      Bucket = "duids"      // DUID in hexadecimal → MAC
	BucketFacts      Bucket = "facts"      // machine name → Facts
	BucketStrangers  Bucket = "strangers"  // MAC → Stranger
	BucketLeases     Bucket = "leases"     // address → Lease
	BucketClusters   Bucket = "clusters"   // name → Cluster
	BucketSecrets    Bucket = "secrets"    // cluster name → Secrets
	BucketBootstraps Bucket = "bootstraps" // cluster name → Bootstrap
	BucketImages     Bucket = "images"     // image id → Image
	BucketRendered   Bucket = "rendered"   // machine name → Rendered
	BucketMembers    Bucket = "members"    // cluster name + "/" + machine name → role
	BucketRollouts   Bucket = "rollouts"   // cluster name → Rollout
	BucketTokens     Bucket = "tokens"     // name → Token
	BucketMeta       Bucket = "meta"       // single values, such as the server DUID
	BucketKeyring    Bucket = "keyring"    // what a store that seals values keeps of its keys
)

// Buckets lists every bucket, for stores that have to know them.
func Buckets() []Bucket {
	return []Bucket{
		BucketMachines, BucketMACs, BucketAddresses, BucketDUIDs, BucketFacts, BucketStrangers, BucketLeases,
		BucketClusters, BucketSecrets, BucketBootstraps, BucketImages, BucketRendered, BucketMembers, BucketRollouts, BucketTokens, BucketMeta, BucketKeyring,
	}
}

// Key names a record.
type Key struct {
	Bucket Bucket
	ID     string // at least one byte; ordered bytewise
}

// Record is a stored value and the revision that wrote it.
type Record struct {
	Key   Key
	Value []byte
	Rev   uint64
}

// Check is a condition of a commit: the record is at this revision. Rev 0 says
// that it does not exist.
type Check struct {
	Key Key
	Rev uint64
}

// Write puts a record, or deletes it when Value is nil.
type Write struct {
	Key   Key
	Value []byte
}

// Commit is one atomic compare-and-swap: all checks hold and all writes happen,
// or nothing does. It fits a bbolt transaction and an etcd Txn alike.
type Commit struct {
	Checks []Check
	Writes []Write
	// Log is appended to the event log in the same transaction. Entries are
	// opaque to the store.
	Log [][]byte

	about []string // machines that Log tells of, for [Keeper.WatchMachines]
	facts []byte   // the encoding of a machine's facts, if Writes has them
}

// LogEntry is an entry of the event log.
type LogEntry struct {
	ID    uint64 // increases by at least one; never reused
	Value []byte
}

// Store keeps records and the event log. Implementations must be safe for
// concurrent use, and every one must pass storetest.Run.
//
// Durability: when Commit returns nil, its writes survive a crash of the
// process and of the machine. Consistency: Get and List see every commit that
// returned before they were called. What is returned is the caller's, to keep and
// to write over; what is given to Commit stays as it is.
type Store interface {
	// Get returns a record, or ErrNotFound.
	Get(ctx context.Context, key Key) (Record, error)
	// List returns up to limit records of a bucket whose id is greater than
	// after, in order of id. A limit of 0 or less means all.
	List(ctx context.Context, bucket Bucket, after string, limit int) ([]Record, error)
	// Commit applies c and returns the new revision, which all records written
	// by it carry, and the id of the first log entry. It returns ErrConflict
	// when a check does not hold, ErrFull when nothing was written because the
	// medium is full, and ErrAmbiguous when it cannot know whether the writes
	// will be seen.
	Commit(ctx context.Context, c Commit) (rev, logID uint64, err error)
	// Log returns up to limit entries with an id greater than after, oldest
	// first. The store may drop the oldest entries to bound the log.
	Log(ctx context.Context, after uint64, limit int) ([]LogEntry, error)
	// LogTail returns the newest entries, at most limit, oldest first.
	LogTail(ctx context.Context, limit int) ([]LogEntry, error)
	// Backup writes a consistent copy of everything while others read and write.
	Backup(ctx context.Context, w io.Writer) error
	// Close releases the store. Calls after it fail.
	Close() error
}
