package refusals_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/refusals"
	"github.com/behest-go/behest/scope"
)

func Example() {
	said := refusals.Table["wrong_action"]
	fmt.Println(said.Status, said.Code+":", said.Description)
	// Output: 403 insufficient_scope: the token is for other actions
}

// Each reason that grant can give has its line, and no two say the same: only so does the holder learn why.
func TestTable(t *testing.T) {
	of := map[string]string{}
	for _, err := range []error{grant.ErrExpired, grant.ErrUsedUp, grant.ErrRevoked, grant.ErrDenied, scope.ErrWrongDomain, scope.ErrWrongAction, grant.ErrUnknown} {
		said, ok := refusals.Table[grant.Reason(fmt.Errorf("asked: %w", err))]
		require.True(t, ok, err)
		require.Empty(t, of[said.Description], err)
		of[said.Description] = err.Error()
	}
	require.Equal(t, refusals.Stranger, grant.Reason(errors.New("other")))
	require.Len(t, refusals.Table, len(of)+1, "and one for who brings no token")
	for reason, said := range refusals.Table {
		require.Equal(t, map[int]string{http.StatusUnauthorized: "invalid_token", http.StatusForbidden: "insufficient_scope"}[said.Status], said.Code, reason)
	}
}
