package inventory_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

func mustToken(t testing.TB, k *inventory.Keeper, token inventory.Token) string {
	t.Helper()
	made, text, err := k.CreateToken(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^pvd_[a-z0-9-]+_[A-Za-z0-9_-]{43}$`).MatchString(text) || made.Rev == 0 || made.Created.IsZero() {
		t.Fatalf("%s: %+v", text, made)
	}
	return text
}

func TestTokens(t *testing.T) {
	k, store := newKeeper(t)
	mustCluster(t, k, "prod")
	now := time.Now()
	ci := mustToken(t, k, inventory.Token{Name: "ci", Access: inventory.AccessOperate, Clusters: []string{"prod"}, By: "root", Expires: now.Add(time.Hour)})
	_, secret, _ := strings.Cut(strings.TrimPrefix(ci, "pvd_"), "_")
	other := mustToken(t, k, inventory.Token{Name: "other", Access: inventory.AccessRead})
	got, err := k.Authenticate(t.Context(), ci, now)
	if err != nil || got.Name != "ci" || got.Access != inventory.AccessOperate || got.Clusters[0] != "prod" || got.By != "root" {
		t.Fatalf("%+v, %v", got, err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	var copied bytes.Buffer
	if err := k.Backup(t.Context(), &copied); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(copied.Bytes(), []byte(secret)) || bytes.Contains(copied.Bytes(), raw) {
		t.Error("the database holds the secret")
	}
	for name, bad := range map[string]string{
		"nothing": "", "another's secret": "pvd_other_" + secret, "nobody's": "pvd_nobody_" + secret, "another prefix": "pat_ci_" + secret,
		"cut short": ci[:len(ci)-1], "longer": ci + "A", "with a space": ci + " ", "padded": ci + "=", "another case": strings.ToUpper(ci), "no secret": "pvd_ci_",
	} {
		if _, err := k.Authenticate(t.Context(), bad, now); !errors.Is(err, inventory.ErrToken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := k.Authenticate(t.Context(), ci, now.Add(time.Hour)); !errors.Is(err, inventory.ErrToken) {
		t.Errorf("expired: %v", err)
	}
	if k.TokenStands(t.Context(), got, now.Add(time.Hour)) || !k.TokenStands(t.Context(), got, now) {
		t.Error("a token stands while it has not expired")
	}

	used := func() uint64 {
		t.Helper()
		all, err := k.Tokens(t.Context())
		if err != nil || len(all) != 2 || all[0].Name != "ci" || all[0].Used.IsZero() {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0].Rev
	}
	rev := used()
	if _, err := k.Authenticate(t.Context(), ci, now); err != nil || used() != rev {
		t.Errorf("its use is written down each time (%v)", err)
	}
	store.Each(func() storetest.Fault { return storetest.Full })
	if _, err := k.Authenticate(t.Context(), other, now.Add(3*time.Hour)); err != nil {
		t.Errorf("a full disk locks out: %v", err)
	}
	store.Each(nil)

	if err := k.RevokeToken(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Authenticate(t.Context(), ci, now); !errors.Is(err, inventory.ErrToken) || k.TokenStands(t.Context(), got, now) {
		t.Errorf("revoked: %v", err)
	}
	again := mustToken(t, k, inventory.Token{Name: "ci", Access: inventory.AccessRead})
	if _, err := k.Authenticate(t.Context(), ci, now); !errors.Is(err, inventory.ErrToken) || k.TokenStands(t.Context(), got, now) {
		t.Errorf("revoked, and its name was given anew: %v", err)
	}
	if err := k.RevokeToken(t.Context(), "nobody"); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("revoking nobody's: %v", err)
	}
	if err := k.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Authenticate(t.Context(), again, now); !errors.Is(err, inventory.ErrToken) {
		t.Errorf("from a backup: %v", err)
	}
}

func TestTokenIsRefused(t *testing.T) {
	k, _ := newKeeper(t)
	mustToken(t, k, inventory.Token{Name: "ci", Access: inventory.AccessRead})
	for name, tt := range map[string]struct {
		token inventory.Token
		field string
		err   error
	}{
		"taken name": {inventory.Token{Name: "ci", Access: inventory.AccessRead}, "name", inventory.ErrExists},
		"bad name":   {inventory.Token{Name: "a_b", Access: inventory.AccessRead}, "name", nil},
		"no role":    {inventory.Token{Name: "a"}, "role", nil},
		"root":       {inventory.Token{Name: "a", Access: "root"}, "role", nil},
		"past":       {inventory.Token{Name: "a", Access: inventory.AccessRead, Expires: time.Now().Add(-time.Second)}, "expires", nil},
		"no cluster": {inventory.Token{Name: "a", Access: inventory.AccessRead, Clusters: []string{"prod"}}, "clusters[0]", inventory.ErrNotFound},
	} {
		_, _, err := k.CreateToken(t.Context(), tt.token)
		var field *inventory.FieldError
		if !errors.As(err, &field) || field.Field != tt.field || tt.err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokenAfterALostAnswer: a commit whose outcome was unknown is one token.
func TestTokenAfterALostAnswer(t *testing.T) {
	k, store := newKeeper(t)
	faults := []storetest.Fault{storetest.LostButPersisted}
	store.Each(func() (f storetest.Fault) {
		if len(faults) > 0 {
			f, faults = faults[0], faults[1:]
		}
		return f
	})
	text := mustToken(t, k, inventory.Token{Name: "ci", Access: inventory.AccessRead})
	if _, err := k.Authenticate(t.Context(), text, time.Now()); err != nil {
		t.Error(err)
	}
}

// FuzzToken: no text but the one that was given out is good, in no other spelling.
func FuzzToken(f *testing.F) {
	store := storetest.NewMemory()
	k, err := inventory.NewKeeper(f.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		f.Fatal(err)
	}
	good := mustToken(f, k, inventory.Token{Name: "ci", Access: inventory.AccessRead})
	now := time.Now()
	f.Add(good)
	f.Add(good[:len(good)-1] + "B") // bits beyond the last octet
	f.Add(good + "\n")
	f.Add(strings.Replace(good, "_ci_", "_CI_", 1))
	f.Add("pvd__")
	f.Add("pvd_a_" + strings.Repeat("A", 43))
	f.Fuzz(func(t *testing.T, text string) {
		got, err := k.Authenticate(t.Context(), text, now)
		if text == good {
			if err != nil || got.Name != "ci" {
				t.Fatalf("the token itself: %v", err)
			}
		} else if !errors.Is(err, inventory.ErrToken) {
			t.Fatalf("%q is good: %v", text, err)
		}
	})
}

func TestAccess(t *testing.T) {
	order := []inventory.Access{inventory.AccessRead, inventory.AccessOperate, inventory.AccessAdmin}
	for i, a := range order {
		for j, b := range order {
			if a.Allows(b) != (i >= j) {
				t.Errorf("%s allows %s", a, b)
			}
		}
		if a.Allows("") || a.Allows("root") || inventory.Access("").Allows(a) || inventory.Access("root").Allows(a) {
			t.Errorf("%s and what is no role", a)
		}
	}
}
