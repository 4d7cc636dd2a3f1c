//go:build !race

package authz_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/scope"
)

// Allocations are what a benchmark can promise on any machine. (Not under the race detector, where pools forget.)
func TestAllocations(t *testing.T) {
	allocations := func(f func()) float64 { return testing.AllocsPerRun(2000, f) }

	h, request, handled := requiring(t, same)
	w, r := &discard{header: http.Header{}}, request()
	require.LessOrEqual(t, allocations(func() { h.ServeHTTP(w, r) }), 7.0, "Require, with the use and its ledger entry")
	require.Equal(t, 2001, *handled)

	h, request, _ = requiring(t, forged)
	r = request()
	require.LessOrEqual(t, allocations(func() { clear(w.header); h.ServeHTTP(w, r) }), 4.0, "a forgery, with its answer")

	az, _ := benchmarked(t)
	ev := grant.Event{ID: "m1", Operation: grant.MessagePost, Account: "zhang-san", Domain: scope.MustDomain("group:42"), Text: "Good morning"}
	require.Zero(t, allocations(func() {
		if issued, err := az.Emit(context.Background(), ev); issued != nil || err != nil {
			t.Error(issued, err)
		}
	}), "Emit of what matches nothing")
}
