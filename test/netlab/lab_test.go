package netlab

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"weft.network/weft/appliance/lab"
)

// lifelineHelper is what this test binary does when TestLabEndsWithItsProcess starts it: it builds a lab and waits to be killed.
func lifelineHelper() bool {
	dir := os.Getenv("NETLAB_HELPER_DIR")
	if dir == "" {
		return false
	}
	_, err := lab.Up(context.Background(), lab.Options{Dir: dir, WeftBin: os.Getenv("NETLAB_HELPER_BIN"), Attached: os.Getenv("NETLAB_HELPER_ATTACHED") == "1"})
	fmt.Println("up:", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	return true
}

// TestLabLeavesNothing: a lab goes without a trace, also when it is taken down twice, and one that was made by a process that
// was killed: at once if it was attached to it, else by down.
func TestLabLeavesNothing(t *testing.T) {
	needRoot(t)
	for _, attached := range []bool{true, false} {
		t.Run(fmt.Sprintf("attached %v", attached), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "lab")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "NETLAB_HELPER_DIR="+dir, "NETLAB_HELPER_BIN="+weft, "NETLAB_HELPER_ATTACHED=0")
			if attached {
				cmd.Env[len(cmd.Env)-1] = "NETLAB_HELPER_ATTACHED=1"
			}
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := lab.Down(context.Background(), dir); err != nil {
					t.Error(err)
				}
			})
			if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "up: <nil>\n" {
				t.Fatalf("building the lab in another process: %q %v", line, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if !attached {
				if left := leftovers(dir); left == "" {
					t.Fatal("the lab ended with the process that made it, and should not")
				}
				for _, name := range []string{"lab.json", "manifests"} { // somebody has begun to remove the folder
					if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					if err := lab.Down(context.Background(), dir); err != nil {
						t.Fatal(err)
					}
				}
			}
			deadline := time.Now().Add(patience)
			for leftovers(dir) != "" {
				<-time.After(10 * time.Millisecond)
				if time.Now().After(deadline) {
					t.Fatalf("left behind: %s", leftovers(dir))
				}
			}
		})
	}
}

// TestDownRefusesOtherFolders: a wrong folder must not be removed.
func TestDownRefusesOtherFolders(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Fatal(err)
	}
}
