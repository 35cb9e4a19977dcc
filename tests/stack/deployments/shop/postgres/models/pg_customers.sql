select customer, count(*) as orders, sum({{ shared.in_units("cents") }}) as spent
from {{ source("till", "pg_raw_orders") }}
group by customer
