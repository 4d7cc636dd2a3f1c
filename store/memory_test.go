package store_test

import (
	"testing"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(*testing.T) (a, b store.Store) {
		m := store.NewMemory()
		return m, m
	})
}
