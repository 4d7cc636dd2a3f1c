package redisstore_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store"
	"github.com/behest-go/behest/store/storetest"
)

func TestSingle(t *testing.T) {
	server := quiet(t)
	one, two := server.client(), server.client()
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		prefix := fresh()
		return open(t, one, prefix), open(t, two, prefix)
	})
}

func TestCluster(t *testing.T) {
	nodes := cluster(t, 3)
	one, two := clusterClient(t, nodes), clusterClient(t, nodes)
	storetest.Run(t, func(t *testing.T) (a, b store.Store) {
		prefix := fresh()
		return open(t, one, prefix), open(t, two, prefix)
	})
	t.Run("spread", func(t *testing.T) {
		for _, n := range nodes {
			require.NoError(t, n.client().FlushAll(background).Err())
		}
		s := open(t, one, fresh())
		for i := range 200 {
			account(t, s, fmt.Sprint("a", i), 5)
		}
		total, most := int64(0), int64(0)
		for _, n := range nodes {
			size, err := n.client().DBSize(background).Result()
			require.NoError(t, err)
			total, most = total+size, max(most, size)
		}
		require.Less(t, most, total*2/3, "one node has nearly everything")
	})
}
