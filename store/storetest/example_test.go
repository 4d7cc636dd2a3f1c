package storetest_test

import (
	"testing"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/storetest"
)

// A store of your own needs one test. Two nodes that share a Memory are that Memory twice; for a database, open it twice.
func Example() {
	_ = func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) (a, b store.Store) {
			m := store.NewMemory()
			return m, m
		})
	}
	// Output:
}
