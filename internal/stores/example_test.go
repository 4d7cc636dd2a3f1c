package stores_test

import (
	"testing"

	"github.com/behest-go/behest/internal/stores"
)

// The same test for every store. (Compiled and not run, since it needs a test.)
func Example() {
	_ = func(t *testing.T) {
		stores.Each(t, func(t *testing.T, s stores.Maker) {
			node := s.New(t)
			one, two := node(), node()
			_, _ = one, two
		})
	}
}
