package sqlite_test

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/store/sqlite"
)

// A file that may only be read is refused when it is opened, not at the first write.
func TestReadOnlyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	require.NoError(t, open(t, path).Close())
	require.NoError(t, os.Chmod(path, 0o444))
	if os.Getuid() == 0 { // root may write to any file: look with the eyes of another user
		for _, d := range []string{dir, filepath.Dir(dir)} {
			require.NoError(t, os.Chmod(d, 0o755))
		}
		runtime.LockOSThread() // and never unlock it: the thread ends with the test
		require.NoError(t, syscall.Setfsuid(65534))
	}
	_, err := sqlite.Open(path)
	require.ErrorIs(t, err, os.ErrPermission)
	require.ErrorContains(t, err, "sqlite: open "+path)
	if os.Getuid() == 0 {
		require.NoError(t, syscall.Setfsuid(0))
	}
}
