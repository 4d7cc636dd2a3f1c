package grant

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A Delegation that waits to be spent is in a handler's hands, and may end in a dump: the token's secret is not in it.
func TestPrepareKeepsNoSecret(t *testing.T) {
	e, err := NewEngine(Config{
		Store: store.NewMemory(), Key: NewSecret(strings.Repeat("k", 32)), Permit: func(context.Context, Access) error { return nil },
		Apps:     []App{{ID: "bookbot", Actions: []string{"message.write"}}},
		Triggers: []Trigger{{App: "bookbot", On: Mention, In: "group:*", Allow: []string{"message.write"}}},
	})
	require.NoError(t, err)
	grants, err := e.Emit(t.Context(), Event{ID: "m1", Operation: Mention, Account: "zhang-san", App: "bookbot", Domain: scope.MustDomain("group:42")})
	require.NoError(t, err)
	_, token, err := e.Redeem(t.Context(), "bookbot", grants[0].Code)
	require.NoError(t, err)
	var opened sealedToken
	require.True(t, e.keys.openToken(token.Reveal(), &opened))
	require.NotZero(t, opened.secret)
	d, err := e.Prepare(t.Context(), token.Reveal(), scope.MustParse("group:42/message.write"))
	require.NoError(t, err)
	require.Zero(t, d.pending.token.secret)
	for i, v := 0, reflect.ValueOf(d.pending).Elem(); i < v.NumField(); i++ {
		if f := v.Field(i); f.Kind() == reflect.String {
			require.NotContains(t, f.String(), token.Reveal())
			require.NotContains(t, f.String(), string(opened.secret[:]))
		}
	}
	require.NoError(t, d.Spend(t.Context(), nil))
}
