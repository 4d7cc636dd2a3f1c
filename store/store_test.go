package store_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
)

func TestReason(t *testing.T) {
	for reason, want := range map[store.Reason]string{
		0: "applied", store.Conflict: "conflict", store.Missing: "missing", store.Expired: "expired", store.Exhausted: "exhausted", 99: "Reason(99)",
	} {
		require.Equal(t, want, reason.String())
		require.Equal(t, reason == 0, store.Outcome{Reason: reason}.Applied())
	}
}

func TestAggregate(t *testing.T) {
	for id, want := range map[string]string{"": "", "a": "a", "a.": "a", "a.b": "a", "a.b.c": "a", ".": "", ".a": "", "a!.b": "a!"} {
		require.Equal(t, want, store.Aggregate(id), "%q", id)
	}
}

// Validate and Aggregate must agree on what one aggregate is, for every byte.
func TestValidateAggregates(t *testing.T) {
	ids := []string{"a", "ab", "", "a.b", "a.b.c", ".", ".a", "b"}
	for b := range 256 {
		ids = append(ids, "a"+string([]byte{byte(b)}), "a"+string([]byte{byte(b)})+"c.d", string([]byte{byte(b)})+".a")
	}
	for _, one := range []string{"a", "a.z", "a.", "ab.z", ".z", "..", "-"} {
		for _, other := range ids {
			err := store.Validate([]store.Op{store.Check("t", one, 0), store.Check("u", other, 0)})
			if other != "" && store.Aggregate(one) == store.Aggregate(other) {
				require.NoError(t, err, "%q and %q", one, other)
			} else {
				require.ErrorIs(t, err, store.ErrInvalid, "%q and %q", one, other)
			}
		}
	}
}

// Errors are for logs: they hold no Data, and no ID, which may be a secret's hash.
func TestValidateTellsNoSecrets(t *testing.T) {
	secret := store.Record{Kind: "t", ID: "a.secret", Data: []byte("secret")}
	large := secret
	large.Data = []byte(strings.Repeat("secret", store.MaxData))
	other := secret
	other.ID = "secret.b"
	for _, ops := range [][]store.Op{{store.Put(secret), store.Put(secret)}, {store.Put(large)}, {store.Put(secret), store.Put(other)}} {
		err := store.Validate(ops)
		require.ErrorIs(t, err, store.ErrInvalid)
		require.NotContains(t, err.Error(), "secret")
	}
}
