package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestConformanceHold(t *testing.T) {
	needCluster(t)
	fmt.Println("HOLD", cluster.Nodes[0].pid, cluster.Nodes[1].pid, cluster.fabric.pid, cluster.dir)
	os.WriteFile("/tmp/conf/pids", []byte(fmt.Sprintf("N1=%s N2=%s SW=%s DIR=%s\n", cluster.Nodes[0].pid, cluster.Nodes[1].pid, cluster.fabric.pid, cluster.dir)), 0o644)
	if err := cluster.startDNS(); err != nil {
		fmt.Println(err)
	}
	config, _ := os.ReadFile(cluster.Nodes[0].Path(adminConfig))
	cluster.fabric.WriteFile(adminConfig, string(config), 0o600)
	for i := 0; i < 3600*2; i++ {
		if _, err := os.Stat("/tmp/conf/stop"); err == nil {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}
