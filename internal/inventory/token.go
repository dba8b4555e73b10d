package inventory

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Access is how much an operator may do. Each includes those before it.
type Access string

// The kinds of access.
const (
	AccessRead    Access = "read"    // sees everything but secrets
	AccessOperate Access = "operate" // changes machines, clusters and images
	AccessAdmin   Access = "admin"   // is told secrets, and gives access to others
)

// Allows reports whether who has access a may do what takes access b. Nobody may do
// what takes none that is known.
func (a Access) Allows(b Access) bool {
	order := []Access{AccessRead, AccessOperate, AccessAdmin}
	needs := slices.Index(order, b)
	return needs >= 0 && slices.Index(order, a) >= needs
}

// Token lets whoever shows its text call the operator's API. The text itself is not
// kept: only its hash, so that a copy of the database opens nothing.
type Token struct {
	Name     string    `json:"name"` // DNS label; a part of the text
	Hash     []byte    `json:"hash"` // SHA-256 of the secret
	Access   Access    `json:"access"`
	Clusters []string  `json:"clusters,omitempty"` // all it is good for; none: the whole rack
	Created  time.Time `json:"created"`
	By       string    `json:"by,omitempty"`     // who made it
	Expires  time.Time `json:"expires,omitzero"` // zero: never
	Used     time.Time `json:"used,omitzero"`    // when it was last shown, to the hour

	Rev uint64 `json:"-"`
}

// A token's text is tokenPrefix, its name, an underscore and its secret, 256 random
// bits in base64url. The prefix lets scanners of repositories and logs find leaked
// ones, and the name says which to revoke.
const (
	tokenPrefix = "pvd_"
	secretBytes = 32
)

// usedEvery is how often at most it is written down that a token was used.
const usedEvery = time.Hour

// ErrToken: the text is not that of a token which is good now. It tells nothing more,
// since whoever shows such a text is a stranger.
var ErrToken = errors.New("the token is unknown, revoked or expired")

// parseToken takes the text of a token apart, in its one form.
func parseToken(text string) (name string, secret []byte, ok bool) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return "", nil, false
	}
	name, encoded, ok := strings.Cut(rest, "_") // a DNS label has no underscore
	if !ok || CheckName("", name) != nil || len(encoded) != base64.RawURLEncoding.EncodedLen(secretBytes) {
		return "", nil, false
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	return name, secret, err == nil && len(secret) == secretBytes
}

// hashSecret is SHA-256, and on purpose not a slow hash such as argon2: those make
// passwords dear to guess, and 256 random bits are past guessing.
func hashSecret(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

// Validate returns what is wrong with a token, as FieldErrors.
func (t *Token) Validate() error {
	errs := []error{CheckName("name", t.Name)}
	if !AccessAdmin.Allows(t.Access) {
		errs = append(errs, fieldErr("role", "read, operate or admin", "%q is not a role", t.Access))
	}
	if !t.Expires.IsZero() && !t.Expires.After(t.Created) {
		errs = append(errs, fieldErr("expires", "a time to come", "%s has passed", t.Expires.Format(time.RFC3339)))
	}
	return errors.Join(errs...)
}

// CreateToken stores a token under a new name and returns its text, which is not to be
// had again. Its clusters must exist. It returns ErrExists when the name is taken.
func (k *Keeper) CreateToken(ctx context.Context, t Token) (*Token, string, error) {
	secret := make([]byte, secretBytes)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	t.Hash, t.Created, t.Used = hashSecret(secret), time.Now().UTC(), time.Time{}
	if err := t.Validate(); err != nil {
		return nil, "", err
	}
	key := Key{BucketTokens, t.Name}
	rev, err := k.commit(ctx, func() (Commit, error) {
		var c Commit
		old, err := getJSON[Token](ctx, k.store, key)
		if err == nil && slices.Equal(old.Hash, t.Hash) {
			return c, nil // our own commit, whose answer was lost
		}
		if err == nil {
			return c, &FieldError{Field: "name", Problem: fmt.Sprintf("token %s already exists", t.Name), Fix: "choose another name, or revoke that one", Err: ErrExists}
		}
		if !errors.Is(err, ErrNotFound) {
			return c, err
		}
		for i, name := range t.Clusters {
			rec, err := k.store.Get(ctx, Key{BucketClusters, name})
			if err != nil {
				return c, &FieldError{Field: fmt.Sprintf("clusters[%d]", i), Problem: fmt.Sprintf("cluster %q: %v", name, err), Err: err}
			}
			c.Checks = append(c.Checks, Check{rec.Key, rec.Rev})
		}
		return c, c.put(key, t, 0)
	})
	if err != nil {
		return nil, "", err
	}
	t.Rev = rev
	return &t, tokenPrefix + t.Name + "_" + base64.RawURLEncoding.EncodeToString(secret), nil
}

// Tokens lists all tokens by name, those that have expired too.
func (k *Keeper) Tokens(ctx context.Context) ([]Token, error) {
	return listAll[Token](ctx, k.store, BucketTokens)
}

// RevokeToken removes a token. Whoever shows it from now on is refused. It returns
// ErrNotFound where there is none.
func (k *Keeper) RevokeToken(ctx context.Context, name string) error {
	key := Key{BucketTokens, name}
	return k.update(ctx, func() (Commit, error) {
		rec, err := k.store.Get(ctx, key)
		if err != nil {
			return Commit{}, fmt.Errorf("token %q: %w", name, err)
		}
		return Commit{Checks: []Check{{key, rec.Rev}}, Writes: []Write{{Key: key}}}, nil
	})
}

// Authenticate returns the token of a text that somebody shows, or ErrToken. That it
// was used is written down now and then; where that fails, it is good all the same.
func (k *Keeper) Authenticate(ctx context.Context, text string, now time.Time) (*Token, error) {
	name, secret, ok := parseToken(text)
	if !ok {
		return nil, ErrToken
	}
	key := Key{BucketTokens, name}
	t, err := getJSON[Token](ctx, k.store, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	// A name that does not exist has no hash, which nothing is equal to.
	if subtle.ConstantTimeCompare(hashSecret(secret), t.Hash) != 1 || t.expired(now) {
		return nil, ErrToken
	}
	if now.Sub(t.Used) >= usedEvery {
		used := t
		used.Used = now.UTC().Truncate(usedEvery)
		var c Commit
		if c.put(key, used, t.Rev) == nil {
			_, _ = k.try(ctx, c) // it may have been revoked in this instant, or the disk is full
		}
	}
	return &t, nil
}

// TokenStands reports whether a token that was good is so still: it is there, is the
// same and has not expired. What lasts, such as a stream, asks it now and then.
func (k *Keeper) TokenStands(ctx context.Context, t *Token, now time.Time) bool {
	is, err := getJSON[Token](ctx, k.store, Key{BucketTokens, t.Name})
	return err == nil && slices.Equal(is.Hash, t.Hash) && !is.expired(now)
}

func (t *Token) expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// revokeAll removes every token.
func (k *Keeper) revokeAll(ctx context.Context) error {
	all, err := k.Tokens(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if err := k.RevokeToken(ctx, all[i].Name); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}
