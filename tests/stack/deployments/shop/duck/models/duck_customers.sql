{{ config(enabled=target.name == 'file') }}
select customer, count(*) as orders, sum({{ shared.in_units("cents") }}) as spent
from {{ ref("duck_raw_orders") }}
group by customer
